#!/bin/sh
# InternVL2-2B, 32k tokens, random visual strides (V2PE): all weights, ZeRO-3, bf16, 20,000 steps.
#
#   PARTITION=... GPUS=32 sh shell/internlm2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh [FLAGS...]
#
# Further flags override those below; --dry-run prints the command, --help this text. Machine and batch variables: shell/launch.sh.
# A run that was stopped continues from its last checkpoint when started again. The other recipes of this folder are
# this one with other variables and flags.
#
# Estimate for H100 80 GB, computed, not measured (assumed rates: internvl/plan/cards.py):
#   python -m internvl.plan --model InternVL2-2B --max_packed_tokens 34000 --tiles 132 --gpus 32 --zero_stage 3 \
#       --grad_checkpoint True
#   25.3 GiB per GPU with 6 GiB reserve: fits; 4.0 s per step, 270,253 tokens/s
set -eu
. "$(dirname -- "$0")/../prelude.sh"
cd "$(dirname -- "$0")/../.."

: "${NAME:=$(basename "$0" .sh)}"
: "${OUTPUT_DIR:=work_dirs/$NAME}"
: "${MODEL_PATH:=pretrained/InternVL2-2B}"
: "${META_PATH:=shell/data/annotation_train_32k.json}"
: "${DATA_ROOT:=dataset}"
: "${DEEPSPEED_CONFIG:=shell/deepspeed/zero3.json}"
: "${ROPE_POS_ID_VERSION:=v2pe_rnd}"
: "${LEARNING_RATE:=5e-6}"
: "${MAX_STEPS:=20000}" "${SAVE_STEPS:=2500}"
: "${IMAGE_SIZE:=448}" "${BF16:=True}"
: "${MAX_TOKENS:=34000}" "${MAX_TILES:=135}"
export JOB_NAME="${JOB_NAME:-$NAME}" CPUS_PER_TASK="${CPUS_PER_TASK:-12}"
check_texts NAME OUTPUT_DIR MODEL_PATH META_PATH DATA_ROOT DEEPSPEED_CONFIG
check_words ROPE_POS_ID_VERSION BF16
check_numbers LEARNING_RATE
check_counts 1 MAX_STEPS SAVE_STEPS IMAGE_SIZE MAX_TOKENS MAX_TILES

exec sh shell/launch.sh \
    --model_name_or_path "$MODEL_PATH" \
    --force_image_size "$IMAGE_SIZE" \
    --down_sample_ratio 0.5 \
    --ps_version v2 \
    --vision_select_layer -1 \
    --drop_path_rate 0.1 \
    --freeze_llm False \
    --freeze_mlp False \
    --freeze_backbone False \
    --grad_checkpoint True \
    --rope_pos_id_version "$ROPE_POS_ID_VERSION" \
    --meta_path "$META_PATH" \
    --data_root "$DATA_ROOT" \
    --dynamic_image_size True \
    --use_thumbnail True \
    --max_dynamic_patch 12 \
    --use_packed_ds True \
    --max_seq_length "$MAX_TOKENS" \
    --max_packed_tokens "$MAX_TOKENS" \
    --num_images_expected "$MAX_TILES" \
    --max_buffer_size 20 \
    --loss_reduction square \
    --loss_reduction_all_gather True \
    --dataloader_num_workers 3 \
    --do_train \
    --bf16 "$BF16" \
    --deepspeed "$DEEPSPEED_CONFIG" \
    --max_steps "$MAX_STEPS" \
    --learning_rate "$LEARNING_RATE" \
    --weight_decay 0.05 \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --output_dir "$OUTPUT_DIR" \
    --save_strategy steps \
    --save_steps "$SAVE_STEPS" \
    --save_total_limit 5 \
    --logging_steps 1 \
    --report_to tensorboard \
    "$@"
