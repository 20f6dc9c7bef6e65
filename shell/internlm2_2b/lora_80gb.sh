#!/bin/sh
# LoRA on one GPU of 80 GB: lora_24gb.sh, but rows of 131,072 tokens and up to 512 tiles, from Long-MR documents of 32k
# to 128k tokens.
#
#   sh shell/internlm2_2b/lora_80gb.sh [FLAGS...]
#
# Estimate for H100 80 GB, computed, not measured (assumed rates: internvl/plan/cards.py):
#   python -m internvl.plan --model InternVL2-2B --max_packed_tokens 131072 --tiles 512 --gpus 1 --zero_stage 1 \
#       --grad_checkpoint True --vit_batch_size 16 --freeze_backbone True --use_llm_lora 16
#   43.2 GiB per GPU with 6 GiB reserve: fits; 29.6 s per step, 4,431 tokens/s
# (of one row; an optimiser step is eight)
set -eu
. "$(dirname -- "$0")/../prelude.sh"
export NAME="${NAME:-$(basename "$0" .sh)}" GPUS="${GPUS:-1}" BATCH_SIZE="${BATCH_SIZE:-8}"
export OUTPUT_DIR="${OUTPUT_DIR:-work_dirs/$NAME}"
exec sh "$(dirname -- "$0")/../recipe.sh" internvl2_2b_lora_80gb "$@"
