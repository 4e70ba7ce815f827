#!/usr/bin/env bash
# The generated shapes, as `python train.py` alone trains them: a whole run in minutes on two CPU cores.
# Every option is spelled out here, so that each can be changed; the same values are the defaults of generated data.
set -euo pipefail
cd "$(dirname "$0")/.."
python train.py --data generated --model timm/resnet10t --weights none "$@"
