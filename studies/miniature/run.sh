#!/bin/sh
# The paper in miniature: the same tiny model fine-tuned with several kinds of visual positions, asked at 1x to 32x of the
# training length.
#
#   sh studies/miniature/run.sh --quick          # one seed, two methods; minutes
#   SEEDS="0 1" METHODS="default rnd_image" sh studies/miniature/run.sh
#   sh studies/miniature/run.sh                  # everything; hours
#   sh studies/miniature/run.sh --schemes        # positions on one axis and on several, with and without YaRN; hours
#   sh studies/miniature/run.sh --schemes --quick
#   sh studies/miniature/run.sh --dry-run        # prints the commands and runs nothing
#
# Every step whose result file exists is skipped and an interrupted evaluation continues: start it again at any time, or with
# other SEEDS and METHODS. Several seeds run at the same time, one process each, and write to WORK/seed_S.log.
#
#   WORK/data, WORK/gate, WORK/text_N                test data; the same for all seeds
#   WORK/seed_S/data                                 training data of stage 2
#   WORK/seed_S/stage1                               trained with ordinary positions until both digits are read at 1x
#                                                    (scripts/pretrain_tiny.sh, then rounds of more steps)
#   WORK/seed_S/METHOD                               its fine-tunes
#   WORK/seed_S/METHOD/evaluations/EVALUATION        answers, scores, heat-maps
#   WORK/seed_S/index.html                           report page of the seed
#   WORK/index.html                                  tables and figures of all seeds, with links to their pages
#   WORK/miniature.json, WORK/figures                the same as data and files (studies/miniature); with --schemes
#                                                    miniature_schemes.json
#
# Methods: stage1 (no fine-tune), default (the control), rnd_image and rnd_sample (v2pe_rnd, a stride per image or per
# sample), fix_STRIDE (v2pe_fix), theta_BASE (the control with another rotary base in both stages), axes_VERSION (positions
# on several axes, such as axes_mrope) and axes_VERSION_stride_STRIDE (with V2PE's step on the axis of time).
# Evaluations: own (the positions of the training; of rnd_image and rnd_sample stride_1-16), default, stride_N or stride_1-N
# (N positions a tile, or 1/N; a tile has 4 visual tokens), axes_VERSION, axes_VERSION_stride_N or _stride_1-N, then any of
# +dynamic-F +linear-F +yarn-F (rope scaling by F), +logn-N (log-n scaling for N tokens of training), +bf16 (rotary tables
# rounded to bfloat16) and +text-N (at 16x, N filler sentences in every context, not one). `default` has no rope scaling.
#
# Environment:
#   WORK          folder of everything       (work_dirs/miniature, with --schemes miniature_schemes; --quick adds _quick)
#   SEEDS         of weights, training data and training           (0 1 2 3 4; quick: 0)
#   DIGITS        layout of the image needles                      (pair; with --schemes corners)
#   METHODS       see above                (stage1 default rnd_image rnd_sample fix_0.25 fix_0.0625; quick: two of them;
#                 with --schemes seven schemes; quick: three)
#   EVALUATIONS   of every method              (default stride_1 stride_1-4 stride_1-16; with --schemes own own+yarn-16)
#   BASELINES     further ones of the method default               (rope scalings, log-n)
#   ABLATIONS     further ones of the methods default, rnd_image   (V2PE with YaRN and log-n, bf16 tables, text share)
#   ABLATION_METHODS  further methods                              (theta_1e6)
#   ABLATION_SEEDS  seeds that get ABLATIONS, ABLATION_METHODS     (0 1 2)
#   LENGTHS       of the test, in units of 32 haystack tiles       (1 2 4 8 16 32; quick: 1 4 16)
#   NUM_ITEMS     test contexts per length, three questions each   (40)
#   STAGE1_STEPS  optimiser steps on contexts of 0 to 2 and of 0 to 32 tiles in the first round
#                 (500 1200; quick: 500 800; with --schemes 1000 for 500)
#   EXTRA_STEPS   of every further round                           (900)
#   MAX_ROUNDS    of stage 1 at most                               (4; quick: 1)
#   GOAL          accuracy of both digits at 1x that ends stage 1  (0.95)
#   STAGE2_DATA   of the fine-tunes                                (0-48:6000)
#   STAGE2_STEPS  optimiser steps of a fine-tune                   (600)
#   JOBS          seeds at the same time                           (one per processor; 1 if there is one seed)
#   NPROC         processes; a step has two rows for any number    (1; 2 if JOBS is 1)
#   PYTHON        interpreter                                      (.venv/bin/python, else python3)
set -eu
. "$(dirname -- "$0")/../../shell/prelude.sh"

quick=0
study=miniature
for flag in "$@"; do
    case $flag in
        --quick) quick=1 ;;
        --schemes) study=miniature_schemes ;;
        *) die "$(show "$flag") is not known, expected --quick, --schemes, --dry-run, --help or nothing" ;;
    esac
done
cd "$(dirname -- "$0")/../.."

if [ "$quick" -eq 1 ]; then : "${WORK:=work_dirs/${study}_quick}"; fi
if [ "$study" = miniature_schemes ]; then
    if [ "$quick" -eq 1 ]; then : "${METHODS=default rnd_image axes_mrope}"; fi
    : "${METHODS=default rnd_image fix_0.25 axes_mrope axes_mrope_interleaved axes_mrope_stride_0.25 axes_videorope}"
    # The order of a pair is learned in phase 1: models that see corners from the start read both digits, but not which is which.
    if [ "$quick" -eq 1 ]; then : "${STAGE1_STEPS:=1000 800}"; else : "${STAGE1_STEPS:=1000 1200}"; fi
    : "${DIGITS:=corners}" "${EVALUATIONS=own own+yarn-16}" "${BASELINES=}" "${ABLATIONS=}" "${ABLATION_METHODS=}"
fi
if [ "$quick" -eq 1 ]; then
    : "${SEEDS=0}" "${METHODS=default rnd_image}"
    : "${EVALUATIONS=default stride_1-16}" "${BASELINES=}" "${ABLATIONS=}" "${ABLATION_METHODS=}"
    : "${LENGTHS:=1 4 16}" "${STAGE1_STEPS:=500 800}" "${STAGE2_STEPS:=400}" "${MAX_ROUNDS:=1}"
fi
: "${WORK:=work_dirs/$study}"
: "${DIGITS:=pair}"
: "${SEEDS=0 1 2 3 4}"
: "${METHODS=stage1 default rnd_image rnd_sample fix_0.25 fix_0.0625}"
: "${ABLATION_METHODS=theta_1e6}"
: "${EVALUATIONS=default stride_1 stride_1-4 stride_1-16}"
: "${BASELINES=default+dynamic-2 default+dynamic-16 default+linear-16 default+yarn-16 default+logn-256}"
: "${ABLATIONS=stride_1-4+yarn-4 stride_1-16+logn-256 stride_1-64 stride_1-4+bf16 stride_1-16+bf16 stride_1-64+bf16 \
default+text-12 stride_1-16+text-12 default+text-30 stride_1-16+text-30}"
: "${ABLATION_SEEDS=0 1 2}"
: "${LENGTHS:=1 2 4 8 16 32}"
: "${NUM_ITEMS:=40}"
: "${STAGE1_STEPS:=500 1200}"
: "${EXTRA_STEPS:=900}"
: "${MAX_ROUNDS:=4}"
: "${GOAL:=0.95}"
: "${STAGE2_DATA:=0-48:6000}"
: "${STAGE2_STEPS:=600}"
: "${SEED_LOG:=}" # set for a seed beside others: its steps go to standard output, all else to this file
if [ -z "${JOBS:-}" ]; then
    case $SEEDS in
        *' '*) JOBS=$(getconf _NPROCESSORS_ONLN) ;;
        *) JOBS=1 ;;
    esac
fi
if [ "$JOBS" -gt 1 ]; then : "${NPROC:=1}"; else : "${NPROC:=2}"; fi
if [ -n "$dry_run" ]; then JOBS=1; fi # one list of commands
choose_python "$PWD"
BATCH_SIZE=2 # rows per optimiser step, whatever NPROC is
export PYTHON NPROC BATCH_SIZE DIGITS
export TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
# The environment may set these for single runs; here they are what a method says.
unset OUT STRIDE TASKS MODEL_PATH META_PATH OUTPUT_DIR ROPE_POS_ID_VERSION RANDOM_STRIDES DATA_ORDER MAX_STEPS \
    DECAY_STEPS || true
run mkdir -p "$WORK"
start=$(date +%s)
if [ -n "$SEED_LOG" ]; then
    exec 3>&1 >>"$SEED_LOG" 2>&1
    trap 'code=$?; if [ "$code" -ne 0 ]; then echo "error: seed $SEEDS ended with code $code: $SEED_LOG" >&3; fi' EXIT
else
    exec 3>/dev/null
fi

step() {
    line="== $* ($(($(date +%s) - start)) s)"
    printf '\n%s\n' "$line"
    echo "$line" >&3
}
# Tiles at 1x are 32, so these edges in tokens part the lengths 1x, 2x, 4x, 8x, 16x and 32x; studies/miniature/cells.py knows them.
length_bins="100 250 450 800 1600 3200"

make_test() { # folder, seed, filler sentences, items, lengths
    # Lists of words on purpose, here and below.
    # shellcheck disable=SC2086
    run "$PYTHON" -m internvl.synth.miniature --out "$1" --tokenizer "$WORK/tokenizer" --name study --seed "$2" \
        --digits "$DIGITS" --filler_sentences "$3" "$3" --train --num_items "$4" --factors $5
}

# Train unless it is done; an interrupted training starts again from the beginning.
train() { # folder, VARIABLE=VALUE..., sh, script, flags...
    folder=$1
    shift
    if [ -f "$folder/train_results.json" ]; then
        echo "$folder: already trained"
    else
        env OUTPUT_DIR="$folder" DATA_ROOT="$data_root" "$@" --overwrite_output_dir True
    fi
}

own_position() { # method; prints the name of the positions that it was trained with
    case $1 in
        rnd_*) echo stride_1-16 ;;
        fix_*) echo "stride_${1#fix_}" ;;
        axes_*) echo "$1" ;;
        *) echo default ;;
    esac
}

flags_of() { # evaluation, method
    position=${1%%+*}
    rest=${1#"$position"}
    if [ "$position" = own ]; then position=$(own_position "$2"); fi
    scaling=
    case $position in
        default)
            flags="--rope_pos_id_version default"
            scaling=none
            ;;
        stride_*) flags="--rope_pos_id_version v2pe_fix --rope_pos_id_stride $(echo "${position#stride_}" | tr - /)" ;;
        axes_*)
            version=${position#axes_}
            flags="--rope_pos_id_version ${version%_stride_*}"
            case $version in
                *_stride_*) flags="$flags --rope_pos_id_stride $(echo "${version##*_stride_}" | tr - /)" ;;
            esac
            ;;
        *) die "evaluation $1: $position is not known, expected own, default, stride_N, stride_1-N or axes_VERSION" ;;
    esac
    root=$WORK/data
    module=eval.run
    while [ -n "$rest" ]; do
        rest=${rest#+}
        option=${rest%%+*}
        rest=${rest#"$option"}
        case $option in
            dynamic-* | linear-* | yarn-*) scaling=$(echo "$option" | tr - :) ;;
            logn-*) flags="$flags --logn_scaling ${option#logn-}" ;;
            text-*) root=$WORK/text_${option#text-} ;;
            bf16) module=studies.miniature.coarse_rotary ;;
            *) die "evaluation $1: +$option is not known (see --help)" ;;
        esac
    done
    if [ -n "$scaling" ]; then flags="$flags --rope_scaling $scaling"; fi
}

evaluate() { # checkpoint, result folder, data root, module, flags...
    checkpoint=$1
    out=$2
    data=$3
    what=$4
    shift 4
    if [ -f "$out/done" ]; then
        echo "$out: already there"
        return
    fi
    set -- -m "$what" --checkpoint "$checkpoint" --data_root "$data/benchmark" --out "$out" --max_num 64 "$@"
    # shellcheck disable=SC2086
    set -- "$@" --length_bins $length_bins
    if [ "$NPROC" -gt 1 ]; then
        set -- -m torch.distributed.run --standalone --nproc_per_node="$NPROC" "$@"
    fi
    run "$PYTHON" "$@"
    run touch "$out/done"
}

case $DIGITS in
    corners) digit_questions=mm_niah/retrieval-image-order-test,mm_niah/reasoning-image-sides-test ;;
    *) digit_questions=mm_niah/retrieval-image-test,mm_niah/reasoning-image-test ;;
esac
all_questions=mm_niah/retrieval-text-test,$digit_questions

made= # the last one; a dry run leaves no folder
# Stage 1: rounds of training with ordinary positions until both digits are read at 1x.
make_stage1() { # seed, result folder, flags of make_tiny...
    seed=$1
    stage=$2
    shift 2
    if [ -d "$stage" ] || [ "$stage" = "$made" ]; then
        echo "$stage: already trained"
        return
    fi
    made=$stage
    previous=
    round=1
    while :; do
        current=${stage}_round_$round
        if [ "$round" -eq 1 ]; then
            env OUT="$current" WORK="${stage}_pretraining" DATA_ROOT="$data_root" SEED="$seed" NUM_TEST=0 \
                STEPS_1="${STAGE1_STEPS% *}" STEPS_2="${STAGE1_STEPS#* }" sh scripts/pretrain_tiny.sh "$@"
        else
            train "$current" MODEL_PATH="$previous" META_PATH="$data_root/annotation/short_0_32.json" \
                MAX_STEPS="$EXTRA_STEPS" SEED="$((seed + 100 * round))" sh shell/tiny/pretrain.sh
        fi
        evaluate "$current" "$current/gate" "$WORK/gate" eval.run --tasks "$digit_questions" \
            --rope_pos_id_version default --rope_scaling none
        code=0
        run "$PYTHON" -m studies.miniature check "$current/gate" --goal "$GOAL" || code=$?
        if [ "$code" -gt 1 ]; then exit "$code"; fi
        if [ "$code" -eq 0 ] || [ "$round" -ge "$MAX_ROUNDS" ]; then break; fi
        previous=$current
        round=$((round + 1))
    done
    echo "$stage: $round round(s)"
    run mv "$current" "$stage"
}

make_method() { # seed, method
    model=$home/$2
    before=$home/stage1
    case $2 in
        theta_*) before=$home/stage1_$2 ;;
    esac
    if [ "$before" = "$home/stage1" ]; then
        make_stage1 "$1" "$before"
    else
        make_stage1 "$1" "$before" --rope_theta "${2#theta_}"
    fi
    set -- "$1" "$2" --rope_pos_id_rnd_scope image
    case $2 in
        stage1) return ;;
        default | theta_*) version=default ;;
        rnd_image) version=v2pe_rnd ;;
        rnd_sample)
            version=v2pe_rnd
            set -- "$1" "$2" --rope_pos_id_rnd_scope sample
            ;;
        fix_*)
            version=v2pe_fix
            set -- "$1" "$2" --rope_pos_id_stride "${2#fix_}"
            ;;
        axes_*_stride_*)
            version=${2#axes_}
            set -- "$1" "$2" --rope_pos_id_stride "${version##*_stride_}"
            version=${version%_stride_*}
            ;;
        axes_*) version=${2#axes_} ;;
    esac
    seed=$1
    shift 2
    train "$model" MODEL_PATH="$before" META_PATH="$data_root/annotation/long_mr_study_long/meta.json" \
        ROPE_POS_ID_VERSION="$version" MAX_STEPS="$STAGE2_STEPS" SEED="$seed" sh shell/tiny/finetune_v2pe.sh "$@"
}

# Names that are wrong show here, before anything runs; versions after axes_ when a command reads them.
for method in $METHODS $ABLATION_METHODS; do
    case $method in
        stage1 | default | rnd_image | rnd_sample | fix_?* | theta_?* | axes_?*) ;;
        *) die "method $method is not known (see --help)" ;;
    esac
done
for evaluation in $EVALUATIONS $BASELINES $ABLATIONS; do flags_of "$evaluation" default; done

make_tests() {
    step "test data: $WORK/data, $WORK/gate"
    run "$PYTHON" -m internvl.tools.make_tiny --out "$WORK/tokenizer"
    make_test "$WORK/data" 0 1 "$NUM_ITEMS" "$LENGTHS"
    make_test "$WORK/gate" 1000 1 "$NUM_ITEMS" 1
    for evaluation in $ABLATIONS; do
        case $evaluation in
            *+text-*)
                sentences=${evaluation#*+text-}
                sentences=${sentences%%+*}
                make_test "$WORK/text_$sentences" 0 "$sentences" "$NUM_ITEMS" 16
                ;;
        esac
    done
}

study_seed() {
    seed=$1
    home=$WORK/seed_$seed
    data_root=$home/data
    step "seed $seed: training data of stage 2: $data_root"
    # shellcheck disable=SC2086
    run "$PYTHON" -m internvl.synth.miniature --out "$data_root" --tokenizer "$WORK/tokenizer" --name study_long \
        --seed "$seed" --digits "$DIGITS" --filler_sentences 0 1 --train $STAGE2_DATA --num_items 0
    case " $ABLATION_SEEDS " in
        *" $seed "*) ablated=1 ;;
        *) ablated=0 ;;
    esac
    methods=$METHODS
    if [ "$ablated" -eq 1 ]; then methods="$METHODS $ABLATION_METHODS"; fi
    folders=
    for method in $methods; do
        step "seed $seed, $method: $home/$method"
        make_method "$seed" "$method"
        case $method in
            default) further=$BASELINES ;;
            *) further= ;;
        esac
        case $ablated$method in
            1default | 1rnd_image) further="$further $ABLATIONS" ;;
        esac
        for evaluation in $EVALUATIONS $further; do
            flags_of "$evaluation" "$method"
            out=$home/$method/evaluations/$evaluation
            step "seed $seed, $method, asked with $evaluation: $out"
            # shellcheck disable=SC2086
            evaluate "$home/$method" "$out" "$root" "$module" --tasks "$all_questions" $flags
            folders="$folders $out"
        done
    done
    if [ -n "$folders" ]; then
        step "seed $seed: report: $home/index.html"
        # shellcheck disable=SC2086
        run "$PYTHON" -m eval.report $folders --out "$home/index.html" --samples 3 --title "V2PE in miniature, seed $seed"
    fi
}

if [ -n "$SEED_LOG" ]; then
    study_seed "$SEEDS"
    exit 0
fi
make_tests
if [ "$JOBS" -gt 1 ]; then
    step "seeds $SEEDS, $JOBS at a time: $WORK/seed_S.log"
    export WORK NPROC OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # shellcheck disable=SC2086
    printf '%s\n' $SEEDS | xargs -P "$JOBS" -I '{}' env SEEDS='{}' JOBS=1 SEED_LOG="$WORK/seed_{}.log" \
        sh studies/miniature/run.sh "$@" ||
        die "not every seed was finished; start it again, finished steps are skipped"
else
    for seed in $SEEDS; do study_seed "$seed"; done
fi
if [ -z "$SEEDS" ]; then exit 0; fi

step "tables and figures of what is finished in $WORK"
run "$PYTHON" -m studies.miniature collect "$WORK" --out "$WORK/$study.json"
run "$PYTHON" -m studies.miniature draw "$WORK/$study.json" --out "$WORK/figures"
run "$PYTHON" -m studies.miniature tables "$WORK/$study.json"
echo
run "$PYTHON" -m studies.miniature page "$WORK/$study.json" --out "$WORK/index.html"
echo "data    $WORK/$study.json"
echo "$(($(date +%s) - start)) s"
