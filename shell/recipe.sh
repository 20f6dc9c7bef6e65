#!/bin/sh
# Start a recipe of examples/: sh shell/recipe.sh NAME [FLAGS...]
#
# What a variable below says becomes the flag of its name, and decides over the file; further flags decide over both.
#
#   MODEL_PATH OUTPUT_DIR META_PATH DATA_ROOT DEEPSPEED_CONFIG ROPE_POS_ID_VERSION
#   LEARNING_RATE MAX_STEPS SAVE_STEPS IMAGE_SIZE BF16
#   MAX_TOKENS MAX_TILES                         of a row (--max_seq_length, --max_packed_tokens, --num_images_expected)
#   VIT_BATCH_SIZE                               tiles that pass the vision tower at a time
#
# Machine and batch variables: shell/launch.sh. --dry-run prints the command.
set -eu
. "$(dirname -- "$0")/prelude.sh"
cd "$(dirname -- "$0")/.."

recipe=examples/${1:-}.yaml
[ -f "$recipe" ] || die "'$(show "${1:-}")' is no recipe: there is no $recipe"
shift
: "${MODEL_PATH:=pretrained/InternVL2-2B}"
export MODEL_PATH JOB_NAME="${JOB_NAME:-${NAME:-v2pe}}" CPUS_PER_TASK="${CPUS_PER_TASK:-12}"
check_texts NAME OUTPUT_DIR MODEL_PATH META_PATH DATA_ROOT DEEPSPEED_CONFIG
check_words ROPE_POS_ID_VERSION BF16
check_numbers LEARNING_RATE
check_counts 1 MAX_STEPS SAVE_STEPS IMAGE_SIZE MAX_TOKENS MAX_TILES VIT_BATCH_SIZE

exec sh shell/launch.sh "$recipe" \
    --model_name_or_path "$MODEL_PATH" \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
    ${META_PATH:+--meta_path "$META_PATH"} \
    ${DATA_ROOT:+--data_root "$DATA_ROOT"} \
    ${DEEPSPEED_CONFIG:+--deepspeed "$DEEPSPEED_CONFIG"} \
    ${ROPE_POS_ID_VERSION:+--rope_pos_id_version "$ROPE_POS_ID_VERSION"} \
    ${LEARNING_RATE:+--learning_rate "$LEARNING_RATE"} \
    ${MAX_STEPS:+--max_steps "$MAX_STEPS"} \
    ${SAVE_STEPS:+--save_steps "$SAVE_STEPS"} \
    ${IMAGE_SIZE:+--force_image_size "$IMAGE_SIZE"} \
    ${BF16:+--bf16 "$BF16"} \
    ${MAX_TOKENS:+--max_seq_length "$MAX_TOKENS" --max_packed_tokens "$MAX_TOKENS"} \
    ${MAX_TILES:+--num_images_expected "$MAX_TILES"} \
    ${VIT_BATCH_SIZE:+--vit_batch_size "$VIT_BATCH_SIZE"} \
    "$@"
