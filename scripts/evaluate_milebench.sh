#!/bin/sh
# MileBench: 29 sets of many pictures, and their averages T, S, NI.
#
#   STRIDE=64 sh scripts/evaluate_milebench.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_milebench_STRIDE, or the same without it for -1. Default:
#           the value of --rope_pos_id_stride
#   TASKS   sets such as ALFRED, or ALFRED-combined-1 (all pictures on one canvas), separated by commas or spaces; their
#           data must be there. Default: those of the 29 sets whose data is there
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

exec sh "$(dirname -- "$0")/suite.sh" milebench eval_milebench milebench "$@"
