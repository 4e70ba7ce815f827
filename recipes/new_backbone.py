"""A new backbone: four stages of plain convolutions, here trained from random weights.

python train.py --model recipes.new_backbone
"""

from torch import Tensor, nn

from models.detector import backbone


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolutions = (nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1))
    return nn.Sequential(*(nn.Sequential(one, nn.BatchNorm2d(outputs), nn.ReLU()) for one in convolutions))


@backbone(__name__)
class Plain(nn.Module):
    channels = (32, 64, 128, 256)
    strides = (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(3, 32, 4), stage(32, 64, 2), stage(64, 128, 2), stage(128, 256, 2)])

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for one in self.stages:
            maps.append(one(maps[-1]))
        return maps[1:]
