#!/usr/bin/env bash
# Learning rate × augmentation × three seeds; the seeds of a pair are one group. Every flag goes to train.py:
#
#   recipes/sweep.sh --data PATH --epochs 12
#
# Started again after an interruption, the same line goes on where it was and leaves out what is finished. A run that
# fails is named at the end. LRS, AUGMENTATIONS, SEEDS and EXPERIMENT change what is swept. Prints the run IDs.
set -uo pipefail
set -m # each training is a process group of its own: of Ctrl-C it gets what is passed on below, once
here=$(cd "$(dirname "$0")/.." && pwd)
experiment=${EXPERIMENT:-sweep}
failed=() stopped="" training=""

stop() { # with an exit code, by a signal
    stopped=$1
    [ -z "$training" ] || kill -s "$2" "$training" 2>/dev/null
}
trap "stop 130 INT" INT
trap "stop 143 TERM" TERM
trap "stop 138 USR1" USR1

for lr in ${LRS:-0.0025 0.005 0.01}; do
    for augmentation in ${AUGMENTATIONS:-flip standard}; do
        for seed in ${SEEDS:-0 1 2}; do
            group="lr$lr-$(basename "${augmentation%.*}")"
            # In the background, because bash answers a signal only after what runs in front.
            python "$here/train.py" --experiment "$experiment" --publish never "$@" --resume auto \
                --group "$group" --run-name "$group-seed$seed" --lr "$lr" --augmentation "$augmentation" --seed "$seed" &
            training=$!
            [ -z "$stopped" ] || kill -s TERM "$training" # it came before there was a process to pass it on to
            while wait "$training"; code=$?; kill -0 "$training" 2>/dev/null; do :; done # a signal ends the waiting only
            training=""
            case $code in 130 | 138 | 143) stopped=$code ;; esac # train.py may have been sent the signal itself
            if [ -n "$stopped" ]; then
                echo "stopped in $group-seed$seed; the same line goes on from there" >&2
                exit "$stopped"
            fi
            [ "$code" -eq 0 ] || failed+=("$group-seed$seed (exit code $code)")
        done
    done
done
{
    echo "all runs: python status.py --experiment $experiment"
    echo "the best: python restore.py best --experiment $experiment"
    [ ${#failed[@]} -eq 0 ] || printf 'failed: %s\n' "${failed[@]}"
} >&2
exit $((${#failed[@]} > 0))
