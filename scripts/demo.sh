#!/bin/sh
# The whole job on a CPU: data, a fine-tune on longer contexts with ring attention, evaluation, report.
#
#   make demo          or          sh scripts/demo.sh
#
# It starts from pretrained/InternVL2-Tiny, which reads contexts of up to 32 tiles at ordinary positions
# (scripts/pretrain_tiny.sh made it), and teaches it random visual strides on contexts of up to 48 tiles. Two processes
# share every row, as eight GPUs share a row of 256k tokens.
#
# Finished steps are skipped and a killed evaluation continues where it stopped, so it may be started again at any time.
# `rm -rf work_dirs/demo` starts over.
#
# Environment:
#   WORK        folder of everything that is trained and measured (work_dirs/demo)
#   CHECKPOINT  the checkpoint that is fine-tuned                 (pretrained/InternVL2-Tiny)
#   DATA_ROOT   data                                              (WORK/data)
#   STEPS       optimiser steps of two rows                       (400)
#   STRIDES     strides that V2PE is evaluated with, 4 visual tokens per tile (1/16)
#   NUM_ITEMS   test contexts per length, three questions each    (60)
#   NPROC       processes; more than one share every row          (2)
#   PYTHON      interpreter                                       (.venv/bin/python, else python3)
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"
cd "$(dirname -- "$0")/.."

check_counts 1 STEPS NUM_ITEMS NPROC
check_texts WORK CHECKPOINT DATA_ROOT
for stride in ${STRIDES:-}; do check_numbers stride; done

: "${WORK:=work_dirs/demo}"
: "${CHECKPOINT:=pretrained/InternVL2-Tiny}"
: "${DATA_ROOT:=$WORK/data}"
: "${STEPS:=400}"
: "${STRIDES:=1/16}"
: "${NUM_ITEMS:=60}"
: "${NPROC:=2}"
choose_python "$PWD"
export PYTHON NPROC DATA_ROOT
export TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
need_checkpoint "$CHECKPOINT"
run mkdir -p "$WORK"
start=$(date +%s)

step() { printf '\n== %s (%s s)\n' "$*" "$(($(date +%s) - start))"; }

step "1/4 retrieval data in V2PE-Data's layout, test data in MM-NIAH's: $DATA_ROOT"
run "$PYTHON" -m internvl.synth.miniature --out "$DATA_ROOT" --tokenizer "$CHECKPOINT" --name demo --filler_sentences 0 1 \
    --train 0-48:5000 --num_items "$NUM_ITEMS" --factors 1 4 8 16

step "2/4 fine-tuning with random visual strides (v2pe_rnd), $NPROC processes share every row: $WORK/finetune"
# A stage that ended has train_results.json; an interrupted one starts again from the beginning.
if [ -f "$WORK/finetune/train_results.json" ]; then
    echo "$WORK/finetune: already trained"
else
    OUTPUT_DIR=$WORK/finetune MODEL_PATH=$CHECKPOINT META_PATH=$DATA_ROOT/annotation/long_mr_demo/meta.json \
        MAX_STEPS=$STEPS CHUNK_NUM=$NPROC BATCH_SIZE=2 \
        sh shell/tiny/finetune_v2pe.sh --overwrite_output_dir True --attn_type ring
fi

step "3/4 evaluation at 1x, 4x, 8x and 16x of the length that the checkpoint was pretrained with"
evaluate() {
    TASKS="retrieval-text-test retrieval-image-test reasoning-image-test" \
        sh scripts/evaluate_mmniah.sh "$WORK/finetune" --data-root "$DATA_ROOT/benchmark" \
        --max_num 64 --length_bins 100 450 800 1600 --out "$@"
}
# Ordinary positions as they are, and with the dynamic NTK scaling that InternVL2's config asks for.
folders="$WORK/eval_mm_niah_unscaled $WORK/eval_mm_niah"
evaluate "$WORK/eval_mm_niah_unscaled" --rope_pos_id_version default --rope_scaling none
evaluate "$WORK/eval_mm_niah" --rope_pos_id_version default
for stride in $STRIDES; do
    folder=$WORK/eval_mm_niah_$(printf %s "$stride" | tr / -)
    evaluate "$folder" --rope_pos_id_version v2pe_fix --rope_pos_id_stride "$stride"
    folders="$folders $folder"
done

step "4/4 report"
# A list of words on purpose.
# shellcheck disable=SC2086
run "$PYTHON" -m eval.report $folders --out "$WORK/index.html" --json "$WORK/report.json" \
    --title "V2PE in miniature: retrieval beyond the training length"

[ -z "$dry_run" ] || exit 0
echo
echo "What the checkpoint's dynamic NTK and small visual strides change (32, 128, 256 and 512 haystack tiles; up to 48 were"
echo "trained on):"
"$PYTHON" -m eval.report.compare "$WORK/report.json"
echo
echo "checkpoint  $WORK/finetune"
set +f
for folder in $folders; do
    for plot in "$folder"/mm_niah/*/heatmap.png; do echo "heat-map    $plot"; done
done
echo "table       $WORK/report.json"
echo "page        $WORK/index.html"
echo "$(($(date +%s) - start)) s"
