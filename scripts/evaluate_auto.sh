#!/bin/sh
# The general benchmarks, all whose data is there: ChartQA, DocVQA, InfoVQA, AI2D, TextVQA, VQAv2, OKVQA, VizWiz, GQA,
# OCR-VQA, ScienceQA, POPE, MMMU, MMBench, CCBench, SEED-Image.
#
#   STRIDE=64 sh scripts/evaluate_auto.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# All arguments after CHECKPOINT go to eval.run. A killed run continues when it is started again.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDE  names the result folder only: CHECKPOINT/eval_origin_STRIDE, or CHECKPOINT/eval_origin for -1. Default: the
#           value of --rope_pos_id_stride
#   TASKS   tasks by our names or upstream's, separated by commas or spaces; their data must be there. The table of
#           V2PE's README:
#           TASKS="vqa-chartqa-test vqa-docvqa-val vqa-ai2d-test vqa-infovqa-val scienceqa pope mmmu-val
#                  mmbench-test-en seed"
#   OUT     result folder, instead of the one inside the checkpoint
set -eu

exec sh "$(dirname -- "$0")/suite.sh" '' eval_origin "vqa scienceqa pope seed mmmu mmbench ccbench" "$@"
