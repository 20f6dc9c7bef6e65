#!/bin/sh
# The whole job on a CPU: make a tiny InternVL2 checkpoint and data, train, evaluate, report.
#
#   make demo          or          sh scripts/demo.sh
#
# Every step that is done is skipped, and a killed evaluation goes on where it stopped: start it again after a break.
# `rm -rf work_dirs/demo` starts over.
#
# Environment:
#   WORK        folder of everything that is trained and measured (work_dirs/demo)
#   CHECKPOINT  the random checkpoint                             (pretrained/InternVL2-Tiny)
#   DATA_ROOT   data                                              (dataset)
#   STRIDES     strides that V2PE is evaluated with, 4 visual tokens per tile (1/16)
#   NUM_ITEMS   test questions per task and context length        (100)
#   NPROC       processes                                         (2)
#   PYTHON      interpreter                                       (.venv/bin/python, else python3)
set -eu
cd "$(dirname "$0")/.."

: "${WORK:=work_dirs/demo}"
: "${CHECKPOINT:=pretrained/InternVL2-Tiny}"
: "${DATA_ROOT:=dataset}"
: "${STRIDES:=1/16}"
: "${NUM_ITEMS:=100}"
: "${NPROC:=2}"
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
export PYTHON NPROC DATA_ROOT
export TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
mkdir -p "$WORK"
start=$(date +%s)

step() { printf '\n== %s (%s s)\n' "$*" "$(($(date +%s) - start))"; }

step "1/5 random InternVL2-format checkpoint: $CHECKPOINT"
"$PYTHON" -m internvl.tools.make_tiny --out "$CHECKPOINT"

step "2/5 retrieval data in V2PE-Data's layout, test data in MM-NIAH's: $DATA_ROOT"
"$PYTHON" -m internvl.build.long_mr --out "$DATA_ROOT" --tokenizer "$CHECKPOINT" --name demo_short \
    --filler_sentences 0 1 --train 0-2:6500 0-8:1500 0-32:5500 --num_items 0
"$PYTHON" -m internvl.build.long_mr --out "$DATA_ROOT" --tokenizer "$CHECKPOINT" --name demo_long \
    --filler_sentences 0 1 --train 0-48:6000 --num_items "$NUM_ITEMS"

# A stage that ended has train_results.json; one that was broken off starts anew.
train() {
    name=$1
    shift
    if [ -f "$WORK/$name/train_results.json" ]; then
        echo "$WORK/$name: already trained"
    else
        OUTPUT_DIR=$WORK/$name sh "$@" --overwrite_output_dir True
    fi
}

step "3a/5 pretraining on short contexts, ordinary positions: $WORK/pretrain"
MODEL_PATH=$CHECKPOINT META_PATH=$DATA_ROOT/annotation/long_mr_demo_short/meta.json DATA_ORDER=sequential \
    train pretrain shell/tiny/pretrain.sh

step "3b/5 fine-tuning with random visual strides (v2pe_rnd): $WORK/finetune"
MODEL_PATH=$WORK/pretrain META_PATH=$DATA_ROOT/annotation/long_mr_demo_long/meta.json \
    train finetune shell/tiny/finetune_v2pe.sh

step "4/5 evaluation at 1x, 2x, 4x and 8x of the training length"
evaluate() {
    TASKS="retrieval-text-test retrieval-image-test reasoning-image-test" \
        sh scripts/evaluate_mmniah.sh "$WORK/finetune" --data-root "$DATA_ROOT/benchmark" \
        --max_num 64 --length_bins 100 250 450 800 --out "$@"
}
folders=$WORK/eval_mm_niah
evaluate "$WORK/eval_mm_niah" --rope_pos_id_version default
for stride in $STRIDES; do
    folder=$WORK/eval_mm_niah_$(printf %s "$stride" | tr / -)
    evaluate "$folder" --rope_pos_id_version v2pe_fix --rope_pos_id_stride "$stride"
    folders="$folders $folder"
done

step "5/5 report"
# A list of words on purpose.
# shellcheck disable=SC2086
"$PYTHON" -m eval.report $folders --out "$WORK/index.html" --json "$WORK/report.json" \
    --title "V2PE in miniature: retrieval beyond the training length"

echo
echo "What small visual strides change (32, 64, 128 and 256 haystack tiles; 32 is the pretraining length):"
"$PYTHON" -m eval.compare "$WORK/report.json"
echo
echo "checkpoint  $WORK/finetune"
for folder in $folders; do
    for plot in "$folder"/mm_niah/*/heatmap.png; do echo "heat-map    $plot"; done
done
echo "table       $WORK/report.json"
echo "page        $WORK/index.html"
echo "$(($(date +%s) - start)) s"
