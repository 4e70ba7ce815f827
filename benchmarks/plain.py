"""What the product is measured against: torchvision's Faster R-CNN and a training loop as its references write it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN

from models import detector
from models.backbones import freeze_stages, frozen_norms

SIZES = {
    **dict.fromkeys(("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"), (800, 1066)),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 426),
}
TRAINABLE_LAYERS = 3  # torchvision's default for fine-tuning
NORM_EPS = 1e-5


def model(name: str, num_classes: int = 91, **options: Any) -> FasterRCNN:
    """torchvision's model as it is fine-tuned, from random weights; its backbone's norms fit the images of `batch`."""
    torch.manual_seed(0)
    built = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=num_classes, **options)
    norms = [norm for norm in built.backbone.body.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():  # without fitting norms the features would vanish, and the losses be the same for all images
        built.train().backbone(built.transform([image / 255 for image in batch(name, 1)[0]])[0].tensors)
        # As detectron2 begins. Rounding exchanges near proposals, and so which are sampled: on large random scores that
        # alone would move the loss.
        built.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.01)
    for norm in norms:
        norm.momentum = 0.1
    if not norms_learn(name):
        frozen_norms(built.backbone.body, NORM_EPS)
    freeze_stages(built.backbone.body, TRAINABLE_LAYERS)
    return built


def norms_learn(name: str) -> bool:
    """Whether the model's batch norms are trained when it is fine-tuned, as torchvision has it."""
    return name.endswith("_v2")


def ours(name: str, *, reference: bool) -> FasterRCNN:
    """The same model as the product builds it, with other weights."""
    norm = {"norm": "batch"} if norms_learn(name) else {"norm": "frozen", "norm_eps": NORM_EPS}
    options = {"trainable_layers": TRAINABLE_LAYERS} | norm
    return detector.build(detector.resolve_architecture(name, num_classes=91, **options), reference=reference)


def batch(name: str, images: int, *, boxes: int = 8, num_classes: int = 91) -> tuple[list[Tensor], list[dict]]:
    """Noise of the size that the model computes in, as uint8 images, and boxes anywhere."""
    height, width = SIZES[name]
    random = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random) for _ in range(images)]
    sides = torch.tensor([width, height])
    targets = []
    for number in range(images):
        corner = torch.rand(boxes, 2, generator=random) * sides * 0.6
        size = torch.rand(boxes, 2, generator=random) * sides * 0.35 + 8
        labels = torch.randint(1, num_classes, (boxes,), generator=random)
        targets.append({"boxes": torch.cat([corner, corner + size], 1), "labels": labels, "image_id": number})
    return pixels, targets


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """As torchvision's references: of the parameters that train; a small rate, as the targets are noise."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)


def training_step(network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Callable:
    """One step of torchvision's references, on images in 0..1: losses by name."""

    def step(images: list[Tensor], targets: list[dict]) -> dict[str, float]:
        images = [image.to(device) for image in images]
        targets = [
            {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in targets
        ]
        losses = network(images, targets)
        total = sum(losses.values())
        values = {name: loss.item() for name, loss in losses.items()}
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return values

    return step
