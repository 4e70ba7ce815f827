"""The backbone as compiled programs in training: fewer and larger operations, for minutes of compiling at the start.

Each shape of a batch has its own program, so batches are padded further than torchvision does, and shapes are few.
Scores are computed as always, uncompiled and without that padding: engine.predict sees to the first.
"""

import math
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

BUCKET = 128  # pixels: images of 800 by 800 to 1333 come in 9 shapes
MOST_SHAPES = 256  # torch's own limit is 8; later ones would run as they are, and a resumed run has others later


class BucketedTransform(GeneralizedRCNNTransform):
    """torchvision's transform, which pads training batches at the right and below to multiples of BUCKET."""

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """(3, H, W) each → (N, 3, H', W')."""
        return super().batch_images(images, math.lcm(size_divisible, BUCKET) if self.training else size_divisible)


def compile_backbone(model: FasterRCNN, **options: Any) -> None:
    """Have torch compile a Faster R-CNN's backbone when it first meets a shape; its keys and values stay the same.

    What torch cannot compile in a researcher's own backbone runs as it is. A copy of the model is not compiled.
    `options` are torch.compile's.
    """
    if type(model.transform) is GeneralizedRCNNTransform:  # not a researcher's own
        model.transform.__class__ = BucketedTransform
    model.backbone.compile(dynamic=False, recompile_limit=MOST_SHAPES, **options)
