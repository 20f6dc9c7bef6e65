#!/bin/sh
# LoRA on one GPU of 24 GB: the 32k recipe, but adapters of rank 16 in the language model and the projector train; the
# vision tower stays as it is.
#
#   sh shell/internlm2_2b/lora_24gb.sh [FLAGS...]
#
#   rows     as in the 32k recipe, eight per optimiser step, one after the other
#   rate     4e-5, since adapters start at zero                         32k: 5e-6
#   steps    2,000                                                      32k: 20,000
#
# The output folder holds merged weights at the end; python -m internvl.tools.merge_lora merges a checkpoint on the way.
#
# Estimate for RTX 4090, computed, not measured (assumed rates: internvl/plan/cards.py):
#   python -m internvl.plan --model InternVL2-2B --max_packed_tokens 34000 --tiles 132 --gpus 1 --zero_stage 1 \
#       --grad_checkpoint True --vit_batch_size 16 --freeze_backbone True --use_llm_lora 16 --gpu RTX-4090
#   19.4 GiB per GPU with 6 GiB reserve: fits; 11.0 s per step, 3,102 tokens/s
# (of one row; an optimiser step is eight)
set -eu
. "$(dirname -- "$0")/../prelude.sh"
export NAME="${NAME:-$(basename "$0" .sh)}" GPUS="${GPUS:-1}" BATCH_SIZE="${BATCH_SIZE:-8}"
export OUTPUT_DIR="${OUTPUT_DIR:-work_dirs/$NAME}"
exec sh "$(dirname -- "$0")/../recipe.sh" internvl2_2b_lora_24gb "$@"
