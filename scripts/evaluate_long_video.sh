#!/bin/sh
# Long videos: LongVideoBench, MLVU, LVBench, VNBench and Video-MME-v2.
#
#   STRIDE=64 sh scripts/evaluate_long_video.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_long_video_STRIDE, or CHECKPOINT/eval_long_video for -1.
#           Default: the value of --rope_pos_id_stride
#   TASKS   such as mlvu, lvbench/test-256frames, separated by commas or spaces; their data must be there. Default: all
#           whose data is there, but mlvu/sub_scene and mlvu/summary only with --judge: they have no score without
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

tasks="longvideobench mlvu/plotQA mlvu/needle mlvu/ego mlvu/count mlvu/order mlvu/anomaly_reco mlvu/topic_reasoning"
tasks="$tasks mlvu/test lvbench vnbench videomme_v2"
judged="mlvu/sub_scene mlvu/summary"
for argument in "$@"; do
    case $argument in
        --judge | --judge=*)
            tasks="$tasks $judged"
            judged=
            ;;
    esac
done
if [ -n "$judged" ] && [ -z "${TASKS:-}" ]; then
    echo "note: $judged need a judge and are left out; give --judge and --judge_model" >&2
fi
exec sh "$(dirname -- "$0")/suite.sh" '' eval_long_video "$tasks" "$@"
