#!/bin/sh
# Evaluate a checkpoint: on a slurm cluster, on the GPUs of this machine, or on its CPU.
#
#   sh scripts/evaluate.sh CHECKPOINT TASKS [arguments of eval.run]
#   sh scripts/evaluate.sh pretrained/InternVL2-2B mm_niah/retrieval-text-test --rope_pos_id_version v2pe_fix \
#       --rope_pos_id_stride 64
#
# Environment:
#   GPUS           GPUs, one process each. Default: those of this machine; 8 with slurm; 0 means CPU
#   GPUS_PER_TASK  GPUs that answer a question together (1). With --ring_attn among the arguments: one process per GPU, the
#                  prompt is spread over them. Without: one process, the layers of the model are spread over them
#   NPROC          processes when there is no GPU (1); with --ring_attn a multiple of GPUS_PER_TASK
#   PARTITION      slurm partition; when set (and srun exists) processes are slurm tasks, otherwise they run here
#   GPUS_PER_NODE  GPUs of a slurm node (8)
#   QUOTA_TYPE     passed to srun as --quotatype when set
#   SRUN_ARGS      further arguments of srun
#   PYTHON         interpreter (.venv/bin/python of this repository, else python3)
set -eu

if [ $# -lt 2 ]; then
    echo "usage: sh scripts/evaluate.sh CHECKPOINT TASKS [arguments of eval.run]" >&2
    exit 2
fi
checkpoint=${1%/}
tasks=$2
shift 2

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; fi
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
    elif command -v nvidia-smi >/dev/null 2>&1; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

check_count() { # name, value, smallest allowed
    case $2 in
        '' | *[!0-9]*) bad=1 ;;
        *) bad=$(($2 < $3)) ;;
    esac
    if [ "$bad" -ne 0 ]; then
        echo "error: $1 must be a whole number of at least $3, got '$2'" >&2
        exit 2
    fi
}

use_slurm=0
if [ -n "${PARTITION:-}" ] && command -v srun >/dev/null 2>&1; then use_slurm=1; fi
if [ -z "${GPUS:-}" ]; then
    if [ "$use_slurm" -eq 1 ]; then GPUS=8; else GPUS=$(count_gpus); fi
fi
NPROC=${NPROC:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
check_count GPUS "$GPUS" 0
check_count NPROC "$NPROC" 1
GPUS_PER_TASK=${GPUS_PER_TASK:-1}
check_count GPUS_PER_NODE "$GPUS_PER_NODE" 1
check_count GPUS_PER_TASK "$GPUS_PER_TASK" 1
processes=$GPUS
if [ "$GPUS" -eq 0 ]; then processes=$NPROC; fi
gpus_per_process=$GPUS_PER_TASK
for argument in "$@"; do
    if [ "$argument" = --ring_attn ]; then gpus_per_process=1; fi
done
if [ $((processes % GPUS_PER_TASK)) -ne 0 ]; then
    echo "error: GPUS_PER_TASK is $GPUS_PER_TASK, which does not divide the $processes GPUs (GPUS) or processes" \
        "(NPROC) of the run" >&2
    exit 2
fi
if [ "$GPUS" -gt 0 ]; then processes=$((processes / gpus_per_process)); fi

if [ "$GPUS_PER_TASK" -gt 1 ]; then set -- --gpus_per_task "$GPUS_PER_TASK" "$@"; fi
set -- -m eval.run --checkpoint "$checkpoint" --tasks "$tasks" "$@"
if [ "$use_slurm" -eq 1 ]; then
    gpus_per_node=$GPUS_PER_NODE
    if [ "$gpus_per_process" -gt "$gpus_per_node" ]; then
        echo "error: GPUS_PER_TASK is $GPUS_PER_TASK, but a node has $GPUS_PER_NODE GPUs (GPUS_PER_NODE); layers can be" \
            "spread within a node only, add --ring_attn for more" >&2
        exit 2
    fi
    per_node=$((gpus_per_node / gpus_per_process))
    if [ "$processes" -lt "$per_node" ]; then per_node=$processes; fi
    set -- "$PYTHON" "$@"
    if [ -n "${QUOTA_TYPE:-}" ]; then set -- "--quotatype=$QUOTA_TYPE" "$@"; fi
    if [ "$GPUS" -gt 0 ]; then set -- "--gres=gpu:$((per_node * gpus_per_process))" "$@"; fi
    # shellcheck disable=SC2086  # SRUN_ARGS holds several words
    exec srun --partition="$PARTITION" --job-name="eval" --ntasks="$processes" --ntasks-per-node="$per_node" \
        --kill-on-bad-exit=1 ${SRUN_ARGS:-} "$@"
elif [ "$processes" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$processes" "$@"
else
    exec "$PYTHON" "$@"
fi
