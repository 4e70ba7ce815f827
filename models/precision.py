"""Boxes and scores are float32 under autocast, whatever precision the convolutions run in.

torchvision makes anchors in the dtype of the feature maps, and decodes boxes in the dtype of the predicted offsets.
Under bfloat16 (8 bits of precision) coordinates above 512 would be multiples of 4 pixels, those of the ground truth
added to the proposals too.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

HALF_PRECISION = (torch.float16, torch.bfloat16)


class FullPrecisionAnchorGenerator(AnchorGenerator):
    """torchvision's AnchorGenerator, giving float32 anchors for half precision maps."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of each image, (sum of locations and anchors, 4) xyxy in pixels."""
        # Only the shapes, the device and the dtype of the maps are looked at.
        return super().forward(image_list, [_full(m[:1, :1]) for m in feature_maps])


class FullPrecision(nn.Module):
    """Before a layer's class: autocast leaves it in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """As the layer's."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(_full(input))


class FullPrecisionLinear(FullPrecision, nn.Linear):
    pass


class FullPrecisionConv2d(FullPrecision, nn.Conv2d):
    pass


FULL_PRECISION = {nn.Linear: FullPrecisionLinear, nn.Conv2d: FullPrecisionConv2d}


def keep_boxes_in_full_precision(model: nn.Module) -> None:
    """Make a Faster R-CNN compute anchors, proposals, scores and boxes in float32 under autocast.

    The layers that give scores and offsets are small, and bfloat16 would leave so few different scores that the order
    of the detections, and with it AP, would change.
    """
    anchors = model.rpn.anchor_generator
    if type(anchors) is AnchorGenerator:  # not a researcher's own
        model.rpn.anchor_generator = FullPrecisionAnchorGenerator(anchors.sizes, anchors.aspect_ratios)
    for head in (model.rpn.head, model.roi_heads.box_predictor):
        for name in ("cls_logits", "cls_score", "bbox_pred"):
            layer = getattr(head, name, None)
            if type(layer) in FULL_PRECISION:
                layer.__class__ = FULL_PRECISION[type(layer)]
        head.register_forward_hook(_full_outputs)


def _full_outputs(_head: nn.Module, _inputs: tuple, outputs: tuple) -> tuple:
    return tuple([_full(t) for t in output] if isinstance(output, list) else _full(output) for output in outputs)


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF_PRECISION else tensor
