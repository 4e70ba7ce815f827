#!/usr/bin/env bash
# What augmentation does on BCCD in five epochs, and what other seeds do: nine short runs, and what compare.py says.
#
#   recipes/bccd_augmentation.sh PATH/TO/BCCD       about an hour on two CPU cores; started again, it goes on
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the folder of BCCD}
export EXPERIMENT=bccd-augmentation
AUGMENTATIONS="dihedral none" SEEDS="0 1 2" recipes/bccd_short.sh "$data" --amp bf16
AUGMENTATIONS="dihedral" SEEDS="3 4 5" recipes/bccd_short.sh "$data" --amp bf16
group() { printf "lr3e-4-%s-seed%s " "$1" "$2" "$1" "$3" "$1" "$4"; }
# The last checkpoints, which no score on val chose.
# shellcheck disable=SC2046
python compare.py $(group dihedral 0 1 2) --against $(group none 0 1 2) --which last
# shellcheck disable=SC2046
python compare.py $(group dihedral 3 4 5) --against $(group dihedral 0 1 2) --which last
