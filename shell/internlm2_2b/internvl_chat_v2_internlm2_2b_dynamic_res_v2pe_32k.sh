#!/bin/sh
# InternVL2-2B, 32k tokens, random visual strides (V2PE): all weights, ZeRO-3, bf16, 20,000 steps.
#
#   PARTITION=... GPUS=32 sh shell/internlm2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh [FLAGS...]
#
# Its flags are in examples/internvl2_2b_32k.yaml; variables and further flags decide over them (shell/recipe.sh).
# Machine and batch variables: shell/launch.sh. --dry-run prints the command, --help this text.
# A run that was stopped continues from its last checkpoint when started again. The other recipes of this folder are
# this one with other variables and flags.
#
# Estimate for H100 80 GB, computed, not measured (assumed rates: internvl/plan/cards.py):
#   python -m internvl.plan --model InternVL2-2B --max_packed_tokens 34000 --tiles 132 --gpus 32 --zero_stage 3 \
#       --grad_checkpoint True
#   25.3 GiB per GPU with 6 GiB reserve: fits; 4.0 s per step, 270,253 tokens/s
set -eu
. "$(dirname -- "$0")/../prelude.sh"
export NAME="${NAME:-$(basename "$0" .sh)}"
export OUTPUT_DIR="${OUTPUT_DIR:-work_dirs/$NAME}"
exec sh "$(dirname -- "$0")/../recipe.sh" internvl2_2b_32k "$@"
