"""Detecting by engine.predict against torchvision's model as its documentation calls it.

    python -m benchmarks.inference [--model NAME …] [--images N …] [--device cpu|cuda] [--repeats 7]

Each way runs in a process of its own, in turn: the plain one twice (how much of a ratio is noise), ours with
--reference, as it is, and in bfloat16. What ours finds is compared with what the plain one finds in the same images.
The weights are random, so that what bfloat16 finds is compared by recipes/bccd_precision.sh instead. The floor is the
FLOPs over the rate of a large matrix product, measured in between.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

import engine
from benchmarks import plain
from benchmarks.in_turn import against_plain, main

Found = list[dict[str, np.ndarray]]


def with_scores(network: FasterRCNN) -> FasterRCNN:
    """Give the class scores a spread as of a trained model: some detections, and no ties that rounding would break."""
    torch.manual_seed(1)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.3)
    return network.eval()


def plainly(model: str, images: int, device: str) -> Callable[[], Found]:
    network = with_scores(plain.model(model)).to(device)
    pixels = plain.batch(model, images)[0]

    def run() -> Found:
        with torch.no_grad():
            outputs = network([image.to(device).float() / 255 for image in pixels])
        return [{key: value.cpu().numpy() for key, value in output.items()} for output in outputs]

    return run


def ours(
    model: str, images: int, device: str, *, amp: torch.dtype | None = None, reference: bool = False
) -> Callable[[], Found]:
    network = plain.ours(model, reference=reference)
    network.load_state_dict(with_scores(plain.model(model)).state_dict())
    network.to(device)
    batches = itertools.repeat(plain.batch(model, images))
    found = engine.predict(network, batches, device=torch.device(device), amp=amp)

    def run() -> Found:
        one_batch = itertools.islice(found, images)
        return [{"boxes": one.boxes, "labels": one.labels, "scores": one.scores} for one in one_batch]

    return run


def flops(model: str, images: int) -> int:
    run = plainly(model, images, "cpu")
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def compared(found: Found, expected: Found) -> str:
    """How far the boxes and scores are from those of the same place and class, and how many have none."""
    pixels, scores, alone, count = [0.0], [0.0], 0, 0
    for one, other in zip(found, expected, strict=True):
        count += len(other["boxes"])
        overlaps = box_iou(*(torch.from_numpy(each["boxes"]) for each in (other, one))).numpy()
        overlaps[other["labels"][:, None] != one["labels"][None]] = 0
        for index, row in enumerate(overlaps):
            if not len(row) or row.max() < 0.9:
                alone += 1
                continue
            pixels.append(np.abs(other["boxes"][index] - one["boxes"][row.argmax()]).max())
            scores.append(abs(other["scores"][index] - one["scores"][row.argmax()]))
    return f"boxes {max(pixels):.4f} px, scores {max(scores):.1e} apart at most; {alone} of {count} found by one alone"


report = against_plain(plainly, ours, flops, compared)

if __name__ == "__main__":
    main(__doc__, report)
