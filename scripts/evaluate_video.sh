#!/bin/sh
# Videos: the twenty tasks of MVBench, and Video-MME without and with subtitles.
#
#   STRIDE=64 sh scripts/evaluate_video.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_video_STRIDE, or CHECKPOINT/eval_video for -1. Default: the
#           value of --rope_pos_id_stride
#   TASKS   such as mvbench, mvbench/action_count, videomme/test-subtitles, separated by commas or spaces; their data
#           must be there. Default: those of both whose data is there
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

exec sh "$(dirname -- "$0")/suite.sh" '' eval_video "mvbench videomme" "$@"
