#!/bin/sh
# MM-NIAH: accuracy by context length and needle depth.
#
#   STRIDE=64 sh scripts/evaluate_mmniah.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_mm_niah_STRIDE, or CHECKPOINT/eval_mm_niah for -1.
#           Default: the value of --rope_pos_id_stride, -1 without that argument. A --rope_scaling such as yarn:4
#           adds _yarn-4
#   TASKS   tasks, separated by commas or spaces; their data must be there. Default: those of the six of the test split
#           whose data is there; the others are listed
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

exec sh "$(dirname -- "$0")/suite.sh" mm_niah eval_mm_niah "retrieval-text-test counting-text-test reasoning-text-test \
retrieval-image-test counting-image-test reasoning-image-test" "$@"
