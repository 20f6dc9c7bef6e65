#!/bin/sh
# InternVL2-2B, 256k tokens, random visual strides (V2PE): eight ranks share every row.
#
#   PARTITION=... GPUS=32 sh shell/internlm2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_256k.sh [FLAGS...]
#
# The 32k recipe, but:
#   rows     262,144 tokens and up to 1,024 tiles (256 tokens each)    32k: 34,000 and 135
#   data     Long-MR, documents of 128k to 256k tokens, five sources    32k: 45 sources
#   ranks    CHUNK_NUM 8 share a row, ring attention                    32k: a rank a row
#   memory   attention is kept while layers are recomputed; 16 tiles pass the vision tower at a time
#   ZeRO     1: weights fit beside such rows, and need not travel       32k: 3
#   steps    5,000 of GPUS / CHUNK_NUM rows                             32k: 20,000
#
# MODEL_PATH is where it starts: InternVL2-2B, or better what the 32k recipe left (shell/internlm2_2b/two_stage.sh).
# GPUs of 40 GB: the same, by the estimate. --offload_activations and --mlp_tile_tokens are for longer rows.
#
# Estimate for H100 80 GB, computed, not measured (assumed rates: internvl/plan/cards.py):
#   python -m internvl.plan --model InternVL2-2B --max_packed_tokens 262144 --tiles 1024 --gpus 32 \
#       --zero_stage 1 --grad_checkpoint True --chunk_num 8 --keep_attention True --vit_batch_size 16
#   29.4 GiB per GPU with 6 GiB reserve: fits; 13.7 s per step, 76,497 tokens/s
set -eu
. "$(dirname -- "$0")/../prelude.sh"
export NAME="${NAME:-$(basename "$0" .sh)}" CHUNK_NUM="${CHUNK_NUM:-8}"
export OUTPUT_DIR="${OUTPUT_DIR:-work_dirs/$NAME}"
exec sh "$(dirname -- "$0")/../recipe.sh" internvl2_2b_256k "$@"
