"""A new loss: focal classification (Lin et al. 2017, arXiv:1708.02002, equation 4) in the box head of any model.

python train.py --model recipes.new_loss/timm/resnet10t
"""

import torch
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import fastrcnn_loss

from models.detector import variant

GAMMA = 2.0


def focal_loss(class_logits, box_regression, labels, regression_targets):
    """The losses of classes and of boxes; the arguments are described in models/roi_heads.py."""
    cross_entropy = F.cross_entropy(class_logits, torch.cat(labels), reduction="none")
    wrong = 1 - torch.exp(-cross_entropy)  # the probability that is not the label's
    _, boxes = fastrcnn_loss(class_logits, box_regression, labels, regression_targets)
    return (wrong**GAMMA * cross_entropy).mean(), boxes


@variant(__name__)
def use_focal_loss(model: FasterRCNN) -> None:
    model.roi_heads.box_loss = focal_loss
