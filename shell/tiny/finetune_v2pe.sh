#!/bin/sh
# Stage 2 of the CPU demonstration: a short fine-tune with random visual strides, on contexts up to 1.5 times as long.
#
#   sh shell/tiny/finetune_v2pe.sh [FLAGS...]
#
# Strides go below 1 because a tile has only 4 visual tokens: delta = stride / 4 is 1, 1/2, ..., 1/64.
# ROPE_POS_ID_VERSION=default OUTPUT_DIR=... trains the control.
set -eu
. "$(dirname -- "$0")/../prelude.sh"
: "${ROPE_POS_ID_VERSION:=v2pe_rnd}"
: "${OUTPUT_DIR:=work_dirs/tiny_$ROPE_POS_ID_VERSION}"
: "${MODEL_PATH:=pretrained/InternVL2-Tiny}"
: "${DATA_ROOT:=work_dirs/demo/data}"
: "${META_PATH:=$DATA_ROOT/annotation/long_mr_demo/meta.json}"
: "${MAX_STEPS:=600}"
: "${LEARNING_RATE:=1e-3}"
: "${WARMUP_STEPS:=25}"
: "${RANDOM_STRIDES:=4 2 1 0.5 0.25 0.125 0.0625}"
export ROPE_POS_ID_VERSION OUTPUT_DIR MODEL_PATH DATA_ROOT META_PATH MAX_STEPS LEARNING_RATE WARMUP_STEPS

# RANDOM_STRIDES is a list of words on purpose.
# shellcheck disable=SC2086
exec sh "$(dirname "$0")/pretrain.sh" --rope_pos_id_random_strides $RANDOM_STRIDES "$@"
