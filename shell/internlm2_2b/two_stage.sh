#!/bin/sh
# 32k, then 256k. The first stage learns the tasks and the strides from 45 sources, on rows that cost little; the second
# continues from there and only learns the length. The 256k data is retrieval and reasoning in long documents: alone it
# would leave out charts, scanned pages and everything else of the 32k mixture.
#
#   PARTITION=... GPUS=32 sh shell/internlm2_2b/two_stage.sh [FLAGS...]
#
# FLAGS and variables go to both recipes (their estimates hold), but variables with a number belong to that stage.
# OUTPUT_DIR gets one folder per stage. Started again, a finished stage is not trained again, and one that was
# stopped continues. With FOLLOW=0 both jobs are submitted at once; slurm starts the second when the first has finished.
set -eu
. "$(dirname -- "$0")/../prelude.sh"
: "${NAME:=two_stage}"
: "${OUTPUT_DIR:=work_dirs/$NAME}"
: "${META_PATH_1:=shell/data/annotation_train_32k.json}" "${META_PATH_2:=shell/data/annotation_train_256k.json}"
: "${MAX_TOKENS_1:=34000}" "${MAX_TOKENS_2:=262144}"
: "${MAX_TILES_1:=135}" "${MAX_TILES_2:=1024}"
: "${MAX_STEPS_1:=20000}" "${MAX_STEPS_2:=5000}"
: "${CHUNK_NUM_2:=8}"
recipe=$(dirname "$0")/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe
folder=$OUTPUT_DIR
check_switches FOLLOW

train_32k() {
    NAME="${NAME}_32k" OUTPUT_DIR="$folder/32k" META_PATH="$META_PATH_1" MAX_TOKENS="$MAX_TOKENS_1" \
        MAX_TILES="$MAX_TILES_1" MAX_STEPS="$MAX_STEPS_1" CHUNK_NUM=1 sh "${recipe}_32k.sh" "$@"
}
train_256k() {
    NAME="${NAME}_256k" MODEL_PATH="$folder/32k" OUTPUT_DIR="$folder/256k" META_PATH="$META_PATH_2" \
        MAX_TOKENS="$MAX_TOKENS_2" MAX_TILES="$MAX_TILES_2" MAX_STEPS="$MAX_STEPS_2" CHUNK_NUM="$CHUNK_NUM_2" \
        sh "${recipe}_256k.sh" "$@"
}

if [ "${FOLLOW:-1}" = 0 ]; then
    job=$(train_32k "$@")
    printf '%s\n' "$job"
    case $job in
    '' | *[!0-9]*) ;; # not submitted: a dry run, or no slurm
    *) export SBATCH_ARGS="${SBATCH_ARGS:-} --dependency=afterok:$job" ;;
    esac
else
    train_32k "$@"
fi
train_256k "$@"
