"""Under bfloat16 autocast, boxes and scores are as exact as in float32."""

import pytest
import torch

from models.detector import build, resolve_architecture


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"image_min_size": 640, "score_threshold": 0.0, "proposals": 50, "detections": 20, "roi_samples": 16}
    return build(resolve_architecture("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3, **options))


def seen_inputs(module: torch.nn.Module, seen: list) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))


def test_anchors_and_proposals_are_exact_and_ground_truth_unrounded(model):
    images = [torch.rand(3, 640, 640)]
    box = torch.tensor([[517.25, 530.5, 611.75, 601.125]])
    pooled: list = []
    handle = seen_inputs(model.roi_heads.box_roi_pool, pooled)
    anchors: list = []
    anchor_handle = model.rpn.anchor_generator.register_forward_hook(lambda _m, _i, output: anchors.append(output[0]))
    try:
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                model.train()(images, [{"boxes": box, "labels": torch.tensor([1]), "sample_seed": 1}])
    finally:
        handle.remove()
        anchor_handle.remove()
    assert torch.equal(anchors[0], anchors[1])
    maps, proposals = pooled[1][:2]
    assert next(iter(maps.values())).dtype == torch.bfloat16
    assert proposals[0].dtype == torch.float32
    assert (proposals[0] == box).all(dim=1).any()


def test_detections_are_not_rounded_to_multiples_of_four_pixels(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (detected,) = model.eval()([torch.rand(3, 640, 640)])
    assert detected["boxes"].dtype == detected["scores"].dtype == torch.float32
    assert (detected["boxes"] != detected["boxes"].bfloat16()).any()


def test_scores_keep_their_order_and_objects_theirs(model):
    """Of bfloat16's 256 steps between a power of two and the next, many scores would share one."""
    logits: dict[str, torch.Tensor] = {}
    layers = {"anchors": model.rpn.head.cls_logits, "classes": model.roi_heads.box_predictor.cls_score}
    handles = [
        layer.register_forward_hook(lambda _m, _i, output, name=name: logits.update({name: output}))
        for name, layer in layers.items()
    ]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.eval()([torch.rand(3, 640, 640)])
    for handle in handles:
        handle.remove()
    for name, values in logits.items():
        assert values.dtype == torch.float32, name
        assert (values != values.bfloat16()).any(), name


def test_float64_stays(model):
    with torch.no_grad():
        (detected,) = model.double().eval()([torch.rand(3, 640, 640, dtype=torch.float64)])
    model.float()
    assert detected["boxes"].dtype == torch.float64
