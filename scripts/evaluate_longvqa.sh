#!/bin/sh
# Long-VQA: 17 sets of questions about one picture among many, 32k to 64k tokens.
#
#   STRIDE=64 GROUP=32 sh scripts/evaluate_longvqa.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   GROUP   thousands of tokens: 32 (default), 40, 48, 56, 64, or several, separated by commas or spaces
#   STRIDE  names the result folder only: CHECKPOINT/eval_longvqa_STRIDE, or the same without it for -1. Default:
#           the value of --rope_pos_id_stride
#   TASKS   sets such as chartqa, of every length in GROUP, or chartqa-64k; separated by commas or spaces; their data
#           must be there. Default: those of the 17 sets whose data is there
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

default=
asked_tasks=
for length in $(printf '%s' "${GROUP:-32}" | tr ',' ' '); do
    case $length in
        32 | 40 | 48 | 56 | 64) ;;
        *) refuse GROUP "32, 40, 48, 56 or 64, or several of them" ;;
    esac
    default="$default *-${length}k"
    for task in $(printf '%s' "${TASKS:-}" | tr ',' ' '); do
        case $task in
            *-[0-9][0-9]k) ;;
            *) task=$task-${length}k ;;
        esac
        asked_tasks="$asked_tasks $task"
    done
done
TASKS=$asked_tasks
export TASKS
exec sh "$(dirname -- "$0")/suite.sh" longvqa eval_longvqa "$default" "$@"
