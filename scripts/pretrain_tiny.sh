#!/bin/sh
# Train InternVL2-Tiny from random weights: short contexts, ordinary positions, minutes on a CPU.
#
#   sh scripts/pretrain_tiny.sh [FLAGS of internvl.tools.make_tiny...]
#
# What it reads afterwards: handwritten digits and words of a context of up to 32 tiles (about 190 tokens), and bar charts.
# pretrained/InternVL2-Tiny is what this made (PUBLISH=1); the miniature study makes one per seed.
#
#   WORK/random    the checkpoint with random weights (make_tiny)
#   WORK/data      training data, and test data unless NUM_TEST is 0 (unless DATA_ROOT is set)
#   WORK/phase_1   after contexts of up to 2 tiles, and charts
#   OUT            after contexts of up to 32 tiles, and charts
#   WORK/scores    answers to the test questions, scores
#
# Finished steps are skipped; an interrupted training starts again from the beginning.
#
# Environment:
#   OUT            the checkpoint                                 (WORK/InternVL2-Tiny)
#   WORK           everything else                                (work_dirs/pretrain_tiny)
#   DATA_ROOT      data                                           (WORK/data)
#   SEED           of weights, data and training                  (0)
#   STEPS_1        optimiser steps on contexts of 0 to 2 tiles    (500)
#   STEPS_2        optimiser steps on contexts of 0 to 32 tiles   (1200)
#   DIGITS         layout of the image needles of phase 2; phase 1 has pairs, whose order is learned first (pair)
#   NUM_TEST       test contexts and charts; 0: no evaluation     (200; with other DIGITS 0)
#   PUBLISH        1: bring card, log and weights to pretrained/InternVL2-Tiny (0)
#   NPROC          processes; a step has two rows for any number  (2)
#   PYTHON         interpreter                                    (.venv/bin/python, else python3)
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"
cd "$(dirname -- "$0")/.."

check_counts 0 SEED STEPS_1 STEPS_2 NUM_TEST
check_counts 1 NPROC
check_switches PUBLISH
check_words DIGITS
check_texts WORK OUT DATA_ROOT
: "${WORK:=work_dirs/pretrain_tiny}"
: "${OUT:=$WORK/InternVL2-Tiny}"
: "${DATA_ROOT:=$WORK/data}"
: "${SEED:=0}"
: "${STEPS_1:=500}"
: "${STEPS_2:=1200}"
: "${DIGITS:=pair}"
if [ "$DIGITS" = pair ]; then : "${NUM_TEST:=200}"; else : "${NUM_TEST:=0}"; fi
: "${PUBLISH:=0}"
: "${NPROC:=2}"
choose_python "$PWD"
BATCH_SIZE=2 # rows per optimiser step, whatever NPROC is
export PYTHON NPROC BATCH_SIZE DATA_ROOT SEED
export TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
run mkdir -p "$WORK"
start=$(date +%s)

step() { printf '\n== %s (%s s)\n' "$*" "$(($(date +%s) - start))"; }

step "random weights: $WORK/random"
run "$PYTHON" -m internvl.tools.make_tiny --out "$WORK/random" --seed "$SEED" "$@"

step "data: $DATA_ROOT"
make_contexts() { # name, flags...
    name=$1
    shift
    run "$PYTHON" -m internvl.synth.miniature --out "$DATA_ROOT" --tokenizer "$WORK/random" --name "$name" --seed "$SEED" \
        --filler_sentences 0 1 --factors 1 "$@"
}
first=short # the set of phase 1
if [ "$DIGITS" = pair ]; then
    make_contexts short --train 0-2:6500 0-32:12000 --num_items "$NUM_TEST"
else
    first=pairs
    make_contexts pairs --train 0-2:6500 --num_items 0
    make_contexts short --digits "$DIGITS" --train 0-32:12000 --num_items "$NUM_TEST"
fi
run "$PYTHON" -m internvl.synth.miniature.charts --out "$DATA_ROOT" --tokenizer "$WORK/random" --name short --seed "$SEED" \
    --num_test "$NUM_TEST"
merge='import json, sys; out, *parts = sys.argv[1:]
json.dump({k: v for path in parts for k, v in json.load(open(path)).items()}, open(out, "w"))'
annotation=$DATA_ROOT/annotation
for contexts in "$first/meta_0_2" short/meta_0_32; do
    run "$PYTHON" -c "$merge" "$annotation/short_${contexts#*/meta_}.json" "$annotation/long_mr_$contexts.json" \
        "$annotation/charts_short/meta.json"
done

# The learning rate stays high until the last third of phase 2: with rates that fall early, models of some seeds read both
# digits and never learn which is first.
train() { # folder, checkpoint, meta file, steps, steps in which the learning rate falls
    if [ -f "$1/train_results.json" ]; then
        echo "$1: already trained"
    else
        OUTPUT_DIR=$1 MODEL_PATH=$2 META_PATH=$annotation/$3 MAX_STEPS=$4 DECAY_STEPS=$5 \
            sh shell/tiny/pretrain.sh --overwrite_output_dir True
    fi
}

step "contexts of up to 2 tiles, and charts: $WORK/phase_1"
train "$WORK/phase_1" "$WORK/random" short_0_2.json "$STEPS_1" 0
step "contexts of up to 32 tiles, and charts: $OUT"
train "$OUT" "$WORK/phase_1" short_0_32.json "$STEPS_2" $((STEPS_2 / 3))

if [ "$NUM_TEST" -gt 0 ]; then
    step "evaluation: $WORK/scores"
    set -- -m eval.run --checkpoint "$OUT" --data_root "$DATA_ROOT/benchmark" --out "$WORK/scores" --max_num 64 \
        --rope_pos_id_version default --tasks \
        mm_niah/retrieval-text-test,mm_niah/retrieval-image-test,mm_niah/reasoning-image-test,vqa/chartqa-test-augmented
    if [ "$NPROC" -gt 1 ]; then
        set -- -m torch.distributed.run --standalone --nproc_per_node="$NPROC" "$@"
    fi
    run "$PYTHON" "$@"
fi

if [ "$PUBLISH" = 1 ]; then
    step "published: pretrained/InternVL2-Tiny"
    run "$PYTHON" -m internvl.tools.publish_tiny --checkpoint "$OUT" --runs "$WORK/phase_1" "$OUT" --scores "$WORK/scores"
fi
echo "$(($(date +%s) - start)) s"
