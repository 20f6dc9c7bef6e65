#!/bin/sh
# Evaluate a checkpoint on MM-NIAH with contexts of 512k to 1.2M tokens: eight GPUs answer a question together, each
# keeps the keys and values of an eighth of the context, and 65,536 tokens pass the decoder at a time.
#
#   PARTITION=... sh shell/internlm2_2b/v2pe_1m.sh [ARGUMENTS of eval.run]
#
# Stride 1 keeps a tile of 256 tokens within one position; STRIDE chooses another one. Started again after being killed,
# it continues. Results: MODEL_PATH/eval_mm_niah_long_STRIDE. Variables: scripts/evaluate.sh.
#
# Estimate for H100 80 GB, computed, not measured (assumed rates: internvl/plan/cards.py):
#   python -m internvl.plan --model InternVL2-2B --mode infer --max_packed_tokens 1228800 --tiles 4800 --gpus 8 \
#       --chunk_num 8 --prefill_chunk_size 65536
#   30.6 GiB per GPU with 6 GiB reserve: fits; 70.8 s per prefill, 17,353 tokens/s
set -eu
. "$(dirname -- "$0")/../prelude.sh"
cd "$(dirname -- "$0")/../.."

: "${MODEL_PATH:=work_dirs/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_256k}"
: "${BENCHMARK_ROOT:=dataset/benchmark}"
check_texts MODEL_PATH BENCHMARK_ROOT
check_counts 1 PREFILL_CHUNK_SIZE
export STRIDE="${STRIDE:-1}" TASKS="${TASKS:-retrieval-image-test-1M}" GPUS="${GPUS:-8}"

exec sh scripts/evaluate_mmniah_long.sh "$MODEL_PATH" \
    --data-root "$BENCHMARK_ROOT" \
    --rope_pos_id_version v2pe_fix \
    --rope_pos_id_stride "$STRIDE" \
    --prefill_chunk_size "${PREFILL_CHUNK_SIZE:-65536}" \
    "$@"
