#!/bin/sh
# Long videos: LongVideoBench, MLVU, LVBench, VNBench and Video-MME-v2.
#
#   STRIDE=64 sh scripts/evaluate_long_video.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again. mlvu/sub_scene and
# mlvu/summary have no score without --judge.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_long_video_STRIDE, or CHECKPOINT/eval_long_video for -1.
#           Default: the value of --rope_pos_id_stride
#   TASKS   such as mlvu, lvbench/test-256frames, separated by commas or spaces; their data must be there. Default: all
#           whose data is there
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

exec sh "$(dirname -- "$0")/suite.sh" '' eval_long_video "longvideobench mlvu lvbench vnbench videomme_v2" "$@"
