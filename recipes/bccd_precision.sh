#!/usr/bin/env bash
# What --amp bf16 does to AP on BCCD: three seeds trained in either precision, and one model scored in both.
#
#   recipes/bccd_precision.sh PATH/TO/BCCD       about half an hour on two CPU cores; started again, it goes on
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the folder of BCCD}
export AUGMENTATIONS=dihedral SEEDS="0 1 2"
full=$(EXPERIMENT=bccd-fp32 recipes/bccd_short.sh "$data")
half=$(EXPERIMENT=bccd-bf16 recipes/bccd_short.sh "$data" --amp bf16)
# The last checkpoints, which no score on val chose.
# shellcheck disable=SC2086
python compare.py $half --against $full --which last
# Each model in both precisions, on all images but one, which training would need: of few images AP is also chance.
splits=$(mktemp --suffix .json)
trap 'rm -f "$splits"' EXIT
find "$data" -path '*JPEGImages*' -name '*.jpg' -printf '%f\n' | sort |
    python -c "import json, sys; first, *rest = sys.stdin.read().split(); print(json.dumps({'train': [first], 'val': rest}))" \
        >"$splits"
for run in $full $half; do
    for precision in off bf16; do
        printf '%s scored in %s: ' "$run" "$precision"
        python evaluate.py --run "$run" --which last --data "$data" --splits "$splits" --amp $precision --no-log \
            --replicates 0 --worst 0 --json 2>/dev/null |
            python -c "import json, sys; print(json.load(sys.stdin)['metrics']['AP'])"
    done
done
