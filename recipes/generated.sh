#!/usr/bin/env bash
# The generated shapes, as `python train.py` alone trains them: a whole run in minutes on two CPU cores.
# Every option is spelled out here, so that each can be changed; they are the defaults of generated data.
set -euo pipefail
cd "$(dirname "$0")/.."
python train.py --data generated --model timm/resnet10t --weights none \
    --image-min-size 128 --image-max-size 160 --anchor-sizes 16 24 40 56 80 --fpn-channels 64 \
    --roi-samples 64 --proposals 200 --augmentation flip \
    --epochs 3 --batch-size 4 --optimizer adamw --lr 2e-3 --schedule cosine --warmup-steps 50 --clip-norm 10 \
    --workers 0 "$@"
