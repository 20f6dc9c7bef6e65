#!/bin/sh
# Long documents: MMLongBench at 8k to 128k tokens, MMLongBench-Doc, LongDocURL, SlideVQA, DUDE.
#
#   STRIDE=64 GROUP="8 16" sh scripts/evaluate_documents.sh CHECKPOINT --rope_pos_id_version v2pe_fix \
#       --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   GROUP   MMLongBench's thousands of tokens: 8, 16, 32, 64, 128, or several, separated by commas or spaces.
#           Default: all of them
#   STRIDE  names the result folder only: CHECKPOINT/eval_documents_STRIDE, or the same without it for -1. Default:
#           the value of --rope_pos_id_stride
#   TASKS   tasks such as mmlongbench/infoseek-8k, separated by commas or spaces; their data must be there. Default:
#           all of these benchmarks whose data is there, scored by rule. Tasks that need a judge, such as
#           mmlongbench_doc/test-judged, are asked for by name
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

default="mmlongbench_doc/test longdocurl/test slidevqa/test dude/val"
for length in $(printf '%s' "${GROUP:-8 16 32 64 128}" | tr ',' ' '); do
    case $length in
        8 | 16 | 32 | 64 | 128) ;;
        *) refuse GROUP "8, 16, 32, 64 or 128, or several of them" ;;
    esac
    default="$default mmlongbench/*-${length}k"
done
exec sh "$(dirname -- "$0")/suite.sh" "" eval_documents "$default" "$@"
