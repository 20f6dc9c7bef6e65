#!/bin/sh
# A slurm job array over tasks and strides: every array task evaluates one task at one stride on its own GPUs.
#
#   PARTITION=gpu STRIDES="1 16 64" sh scripts/evaluate_array.sh CHECKPOINT TASKS [arguments of eval.run]
#   python -m eval.report OUT/* --out index.html                        all results side by side
#
# TASKS are names, groups or patterns as eval.run knows them, separated by commas or spaces. An array task is requeued
# before its time limit, after preemption and after the loss of a node, and continues after its last answer. One that
# fails is not requeued, and the others go on. Submitting the same again continues as well.
#
# Environment, besides that of scripts/evaluate.sh:
#   STRIDES    strides of v2pe_fix, separated by spaces; the word default: ordinary positions. Without STRIDES positions
#              follow from the arguments
#   MOST       array tasks that run at a time (all)
#   OUT        folder of the result folders, TASK or TASK_STRIDE (CHECKPOINT/eval_array)
#   TIME_LIMIT SIGNAL_SECONDS LOG_DIR SBATCH_ARGS       as for shell/sbatch.sh; a log for every array task
#   FOLLOW     0: only submit, print the job's number; 1 (default): wait, and end with 1 if an array task failed
set -eu
# Slurm runs a copy of this script, which finds the repository by the variable.
# shellcheck source=../shell/prelude.sh
. "${EVALUATE_ARRAY_ROOT:-$(dirname -- "$0")/..}/shell/prelude.sh"

[ $# -ge 2 ] || die "usage: PARTITION=... sh scripts/evaluate_array.sh CHECKPOINT TASKS [arguments of eval.run]"
check_slurm
check_counts 0 GPUS
check_counts 1 NPROC GPUS_PER_TASK MOST
check_switches FOLLOW
check_texts OUT LOG_DIR
checkpoint=${1%/}
names=$(printf '%s' "$2" | tr ',' ' ')

# An array task: number i of the table with a row a task and a column a stride.
if [ -n "${EVALUATE_ARRAY_ROOT:-}" ]; then
    shift 2
    index=0
    for name in $names; do
        for stride in ${STRIDES:--}; do
            if [ "$index" -eq "$SLURM_ARRAY_TASK_ID" ]; then break 2; fi
            index=$((index + 1))
        done
    done
    folder=${OUT:-$checkpoint/eval_array}/$(printf '%s' "$name" | tr '/*?' '-__')
    case $stride in
    -) ;;
    default) set -- --rope_pos_id_version default "$@" ;;
    *) set -- --rope_pos_id_version v2pe_fix --rope_pos_id_stride "$stride" "$@" ;;
    esac
    [ "$stride" = - ] || folder=${folder}_$(printf '%s' "$stride" | tr / -)
    say() { echo "$(date '+%H:%M:%S') array task $SLURM_ARRAY_TASK_ID start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"; }
    say "$name, stride $stride, results in $folder"
    asked='' step=''
    trap 'asked=1; [ -z "$step" ] || kill "$step" 2>/dev/null || true' USR1
    sh "$EVALUATE_ARRAY_ROOT/scripts/evaluate.sh" "$checkpoint" "$name" --out "$folder" "$@" &
    step=$!
    code=0
    wait "$step" || code=$?
    if [ -n "$asked" ]; then # the trap ended that wait
        code=0
        wait "$step" || code=$?
    fi
    if [ -n "$asked" ] && [ "$code" -ne 0 ]; then
        say "asked to stop; requeued"
        # The number of the job alone would mean the whole array.
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" && sleep 60 # requeueing ends this script
    fi
    exit "$code"
fi

for stride in ${STRIDES:-}; do
    [ "$stride" = default ] || check_numbers stride
done
[ -n "${PARTITION:-}" ] || die "PARTITION is not set: the slurm partition to submit to"
need_slurm sbatch
need_checkpoint "$checkpoint"
num=0
for name in $names; do
    for stride in ${STRIDES:--}; do num=$((num + 1)); done
done
[ "$num" -gt 0 ] || die "no tasks in '$2'"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
export EVALUATE_ARRAY_ROOT="$root" GPUS="${GPUS:-8}"
processes=$GPUS
[ "$processes" -gt 0 ] || processes=${NPROC:-1}
per_node=${GPUS_PER_NODE:-8}
[ "$per_node" -le "$processes" ] || per_node=$processes
set -- "$root/scripts/evaluate_array.sh" "$@"
[ "$GPUS" -eq 0 ] || set -- --gres="gpu:$per_node" "$@"
[ -z "${QUOTA_TYPE:-}" ] || set -- --quotatype="$QUOTA_TYPE" "$@"
[ -z "${CPUS_PER_TASK:-}" ] || set -- --cpus-per-task="$CPUS_PER_TASK" "$@"
set -- --job-name=eval --partition="$PARTITION" --array="0-$((num - 1))${MOST:+%$MOST}" --ntasks="$processes" \
    --ntasks-per-node="$per_node" "$@"
job=$(FOLLOW=0 sh "$root/shell/sbatch.sh" "$@")
if [ -n "$dry_run" ] || [ "${FOLLOW:-1}" = 0 ]; then
    echo "$job"
    exit 0
fi
echo "job $job, $num array tasks, logs ${LOG_DIR:-work_dirs/slurm}/eval-*.log (Ctrl-C ends this view, not the job)" >&2
while [ -n "$(squeue -h -j "$job" 2>/dev/null)" ]; do sleep 2; done
states=$(scontrol -o show job "$job" | tr ' ' '\n' | grep -e '^ArrayTaskId=' -e '^JobState=' | paste -d ' ' - -)
printf '%s\n' "$states" >&2
case $(printf '%s\n' "$states" | grep -vc 'JobState=COMPLETED') in
0) exit 0 ;;
*) exit 1 ;;
esac
