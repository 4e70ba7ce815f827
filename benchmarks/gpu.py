"""Training and detecting on a GPU, batches of 2, 8 and 16 images of 800 × 1066 pixels, against plain torchvision.

    python -m benchmarks.gpu [--repeats 20]

The tables of benchmarks.training and benchmarks.inference; see there.
"""

import argparse

import torch

from benchmarks import inference, training

MODEL = "fasterrcnn_resnet50_fpn"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here; for the CPU: python -m benchmarks.training")
    for images in (2, 8, 16):
        for benchmark in (training, inference):
            benchmark.report(MODEL, images, "cuda", arguments.repeats)
