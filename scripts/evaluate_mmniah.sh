#!/bin/sh
# MM-NIAH: accuracy by context length and needle depth.
#
#   STRIDE=64 sh scripts/evaluate_mmniah.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments behind CHECKPOINT go to eval.run. Started again after being killed, it continues.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_mm_niah_STRIDE, or CHECKPOINT/eval_mm_niah for -1.
#           Default: the value of --rope_pos_id_stride, -1 without that argument. A --rope_scaling such as yarn:4
#           adds _yarn-4
#   TASKS   tasks, separated by commas or spaces (the six of the test split)
#   OUT     result folder, instead of the one inside the checkpoint
set -eu

if [ $# -lt 1 ]; then
    echo "usage: sh scripts/evaluate_mmniah.sh CHECKPOINT [arguments of eval.run]" >&2
    exit 2
fi
checkpoint=${1%/}
shift

asked=
scaling=
previous=
for argument in "$@"; do
    if [ "$previous" = --rope_pos_id_stride ]; then asked=$argument; fi
    if [ "$previous" = --rope_scaling ]; then scaling=$argument; fi
    case $argument in
        --rope_pos_id_stride=*) asked=${argument#*=} ;;
        --rope_scaling=*) scaling=${argument#*=} ;;
    esac
    previous=$argument
done
STRIDE=${STRIDE:-${asked:--1}}
if [ "$STRIDE" != -1 ] && [ -n "$asked" ] && [ "$asked" != "$STRIDE" ]; then
    echo "error: STRIDE is $STRIDE but --rope_pos_id_stride is $asked; STRIDE only names the result folder," \
        "set both to the same value or leave STRIDE out" >&2
    exit 2
fi

tasks=
for task in $(printf '%s' "${TASKS:-\
retrieval-text-test,counting-text-test,reasoning-text-test,\
retrieval-image-test,counting-image-test,reasoning-image-test}" | tr ',' ' '); do
    case $task in */*) ;; *) task=mm_niah/$task ;; esac
    tasks=${tasks:+$tasks,}$task
done

suffix=
if [ "$STRIDE" != -1 ]; then suffix=_$(printf '%s' "$STRIDE" | tr / -); fi
case $scaling in
    '' | *[!a-z0-9.:]*) ;; # none, or a json object, which makes no name
    *) suffix=${suffix}_$(printf '%s' "$scaling" | tr : -) ;;
esac
OUT=${OUT:-$checkpoint/eval_mm_niah$suffix}
exec sh "$(dirname -- "$0")/evaluate.sh" "$checkpoint" "$tasks" --out "$OUT" "$@"
