#!/bin/sh
# Stage 1 on a CPU: teach a tiny random model short contexts, with ordinary positions (scripts/pretrain_tiny.sh).
#
#   sh shell/tiny/pretrain.sh [FLAGS...]
#
# Two processes on two cores, float32. Every variable below can be set in the environment; further flags override.
set -eu
. "$(dirname -- "$0")/../prelude.sh"
cd "$(dirname -- "$0")/../.."

check_counts 0 MAX_STEPS DECAY_STEPS WARMUP_STEPS NUM_WORKERS SEED
check_counts 1 MAX_SEQ_LENGTH MAX_PACKED_TOKENS MAX_PACKED_TILES
check_numbers LEARNING_RATE
check_words DATA_ORDER ROPE_POS_ID_VERSION
check_texts OUTPUT_DIR MODEL_PATH DATA_ROOT META_PATH DEEPSPEED_CONFIG
: "${OUTPUT_DIR:=work_dirs/tiny_pretrain}"
: "${MODEL_PATH:=work_dirs/pretrain_tiny/random}"
: "${DATA_ROOT:=work_dirs/pretrain_tiny/data}"
: "${META_PATH:=$DATA_ROOT/annotation/short_0_32.json}"
: "${DATA_ORDER:=shuffle}"
: "${DEEPSPEED_CONFIG:=shell/deepspeed/zero1.json}"
: "${ROPE_POS_ID_VERSION:=default}"
: "${MAX_STEPS:=1000}"
: "${LEARNING_RATE:=2e-3}"
: "${DECAY_STEPS:=$((MAX_STEPS / 3))}" # the last ones, in which the learning rate falls to a tenth
: "${WARMUP_STEPS:=80}"
: "${MAX_SEQ_LENGTH:=1024}"
: "${MAX_PACKED_TOKENS:=1024}"
: "${MAX_PACKED_TILES:=256}"
: "${NUM_WORKERS:=0}"
: "${SEED:=0}"
export NPROC="${NPROC:-2}"

exec sh shell/launch.sh \
    --model_name_or_path "$MODEL_PATH" \
    --conv_style internlm2-chat \
    --force_image_size 56 \
    --rope_pos_id_version "$ROPE_POS_ID_VERSION" \
    --meta_path "$META_PATH" \
    --data_root "$DATA_ROOT" \
    --data_order "$DATA_ORDER" \
    --dynamic_image_size True \
    --max_dynamic_patch 64 \
    --use_packed_ds True \
    --max_seq_length "$MAX_SEQ_LENGTH" \
    --max_packed_tokens "$MAX_PACKED_TOKENS" \
    --num_images_expected "$MAX_PACKED_TILES" \
    --loss_reduction_all_gather True \
    --dataloader_num_workers "$NUM_WORKERS" \
    --deepspeed "$DEEPSPEED_CONFIG" \
    --max_steps "$MAX_STEPS" \
    --learning_rate "$LEARNING_RATE" \
    --adam_beta1 0.9 \
    --adam_beta2 0.98 \
    --weight_decay 0.01 \
    --max_grad_norm 1.0 \
    --warmup_steps "$WARMUP_STEPS" \
    --lr_scheduler_type warmup_stable_decay \
    --lr_scheduler_kwargs "{\"num_decay_steps\": $DECAY_STEPS, \"min_lr_ratio\": 0.1}" \
    --seed "$SEED" \
    --output_dir "$OUTPUT_DIR" \
    --save_strategy no \
    --logging_steps 10 \
    --report_to tensorboard \
    "$@"
