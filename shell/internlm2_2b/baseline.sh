#!/bin/sh
# The 32k recipe with ordinary positions, to compare V2PE with; everything else is the same, the estimate too.
#
#   PARTITION=... GPUS=32 sh shell/internlm2_2b/baseline.sh [FLAGS...]
#
# Estimate for H100 80 GB, computed, not measured (assumed rates: internvl/plan/cards.py):
#   python -m internvl.plan --model InternVL2-2B --max_packed_tokens 34000 --tiles 132 --gpus 32 --zero_stage 3 \
#       --grad_checkpoint True
#   25.3 GiB per GPU with 6 GiB reserve: fits; 4.0 s per step, 270,253 tokens/s
set -eu
. "$(dirname -- "$0")/../prelude.sh"
export NAME="${NAME:-baseline}"
export OUTPUT_DIR="${OUTPUT_DIR:-work_dirs/$NAME}"
exec sh "$(dirname -- "$0")/../recipe.sh" internvl2_2b_baseline "$@"
