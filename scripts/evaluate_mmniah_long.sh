#!/bin/sh
# MM-NIAH at 128k to 1M tokens, answers generated: all processes answer a question together (--ring_attn).
#
#   GPUS=64 PARTITION=... STRIDE=1 sh scripts/evaluate_mmniah_long.sh CHECKPOINT --rope_pos_id_version v2pe_fix \
#       --rope_pos_id_stride 1
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   GPUS_PER_TASK  processes that answer a question together; default: all
#   STRIDE         names the result folder only: CHECKPOINT/eval_mm_niah_STRIDE, or CHECKPOINT/eval_mm_niah for -1.
#                  Default: the value of --rope_pos_id_stride
#   TASKS          {retrieval,reasoning}-{image,text}-test-{128k,256k,512k,1M}, separated by commas or spaces, '*' for
#                  all; with the ending -teacher-forced: the published measure, without generation. Their data must
#                  be there. Default: those of retrieval-image-test-* whose data is there
#   OUT            result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

exec sh "$(dirname -- "$0")/suite.sh" mm_niah_long eval_mm_niah 'retrieval-image-test-*' "$@" --ring_attn
