#!/bin/sh
# What the other evaluate_*.sh scripts end in: names of tasks and of the result folder, then scripts/evaluate.sh.
#
#   sh scripts/suite.sh GROUP FOLDER "DEFAULT TASKS" CHECKPOINT [arguments of eval.run]
#
# GROUP   group that bare names in TASKS belong to; empty: there is none, names are full
# FOLDER  result folder inside the checkpoint, without the stride
#
# Environment: STRIDE, TASKS, OUT as those scripts say.
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"
[ $# -ge 3 ] || die "give GROUP, FOLDER and DEFAULT TASKS; see sh scripts/suite.sh --help"
check_numbers STRIDE
check_texts OUT

group=$1
folder=$2
default=$3
shift 3
case ${1:-} in
    '' | -*) die "no checkpoint; usage: sh scripts/evaluate_....sh CHECKPOINT [arguments of eval.run]" ;;
esac
checkpoint=${1%/}
shift

asked=
scaling=
previous=
for argument in "$@"; do
    case $previous in
        --rope_pos_id_stride) asked=$argument ;;
        --rope_scaling) scaling=$argument ;;
    esac
    case $argument in
        --rope_pos_id_stride=*) asked=${argument#*=} ;;
        --rope_scaling=*) scaling=${argument#*=} ;;
    esac
    previous=$argument
done
if [ -n "${STRIDE:-}" ] && [ "$STRIDE" != -1 ]; then
    if [ -z "$asked" ]; then
        echo "note: STRIDE=$STRIDE names the result folder only; positions follow from --rope_pos_id_version and" \
            "--rope_pos_id_stride, or the checkpoint" >&2
    elif [ "$asked" != "$STRIDE" ]; then
        die "STRIDE is $STRIDE but --rope_pos_id_stride is $asked; STRIDE only names the result folder," \
            "set both to the same value or leave STRIDE out"
    fi
fi
STRIDE=${STRIDE:-${asked:--1}}

suffix=
if [ "$STRIDE" != -1 ]; then suffix=_$(printf '%s' "$STRIDE" | tr / -); fi
case $scaling in
    '' | *[!a-z0-9.:]*) ;; # none, or a json object, which makes no name
    *) suffix=${suffix}_$(printf '%s' "$scaling" | tr : -) ;;
esac
OUT=${OUT:-$checkpoint/$folder$suffix}

# Tasks that were asked for by name must have their data; of the usual ones, those that have it are evaluated.
if [ -z "${TASKS:-}" ]; then set -- --skip_missing "$@"; fi
tasks=
for task in $(printf '%s' "${TASKS:-$default}" | tr ',' ' '); do
    case $task in
        */*) ;;
        "$group") ;;
        *) task=${group:+$group/}$task ;;
    esac
    tasks=${tasks:+$tasks,}$task
done
exec sh "$(dirname -- "$0")/evaluate.sh" "$checkpoint" "$tasks" --out "$OUT" "$@"
