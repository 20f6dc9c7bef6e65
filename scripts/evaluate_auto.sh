#!/bin/sh
# The general benchmarks of V2PE's README whose data is there: ChartQA, DocVQA, AI2D, InfoVQA, ScienceQA, POPE, MMMU,
# MMBench in English (dev, scored here, and test, for its server), SEED-Image.
#
#   STRIDE=64 sh scripts/evaluate_auto.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_origin_STRIDE, or CHECKPOINT/eval_origin for -1. Default: the
#           value of --rope_pos_id_stride
#   TASKS   tasks by our names or those of the public code, separated by commas or spaces; their data must be there.
#           The word all: these and TextVQA, VQAv2, OKVQA, VizWiz, GQA, OCR-VQA, MMBench in Chinese, CCBench and test
#           splits, as far as their data is there
#   OUT     result folder, instead of the one inside the checkpoint
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

default="vqa-chartqa-test vqa-docvqa-val vqa-ai2d-test vqa-infovqa-val scienceqa pope mmmu-val mmbench-dev-en \
mmbench-test-en seed"
if [ "${TASKS:-}" = all ]; then
    default="vqa scienceqa pope seed mmmu mmbench ccbench"
    unset TASKS
fi
exec sh "$(dirname -- "$0")/suite.sh" '' eval_origin "$default" "$@"
