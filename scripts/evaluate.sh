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
#                  prompt is spread over them. Without: one process, the layers of the model are spread over them,
#                  which needs GPUs
#   NPROC          processes when there is no GPU (1); with --ring_attn a multiple of GPUS_PER_TASK
#   PARTITION      slurm partition; when set processes are slurm tasks, otherwise they run on this machine
#   GPUS_PER_NODE  GPUs of a slurm node (8)
#   QUOTA_TYPE     passed to srun as --quotatype when set
#   SRUN_ARGS      further arguments of srun
#   PYTHON         interpreter (.venv/bin/python of this repository, else python3)
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"

[ $# -ge 2 ] || die "usage: sh scripts/evaluate.sh CHECKPOINT TASKS [arguments of eval.run]"
checkpoint=${1%/}
tasks=$2
shift 2

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
need_checkpoint "$checkpoint"
choose_python "$root"
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
export_cuda_settings

count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
    elif command -v nvidia-smi >/dev/null 2>&1; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

check_slurm
check_counts 0 GPUS
check_counts 1 NPROC GPUS_PER_TASK
if [ -n "${PARTITION:-}" ]; then
    need_slurm srun
    GPUS=${GPUS:-8}
else
    GPUS=${GPUS:-$(count_gpus)}
fi
NPROC=${NPROC:-1} GPUS_PER_NODE=${GPUS_PER_NODE:-8} GPUS_PER_TASK=${GPUS_PER_TASK:-1}
processes=$GPUS
if [ "$GPUS" -eq 0 ]; then processes=$NPROC; fi
gpus_per_process=$GPUS_PER_TASK
for argument in "$@"; do
    if [ "$argument" = --ring_attn ]; then gpus_per_process=1; fi
done
if [ "$GPUS" -eq 0 ] && [ "$gpus_per_process" -gt 1 ]; then
    echo "note: GPUS_PER_TASK=$GPUS_PER_TASK has no effect without GPUs" >&2
    GPUS_PER_TASK=1 gpus_per_process=1
fi
if [ $((processes % GPUS_PER_TASK)) -ne 0 ]; then
    die "GPUS_PER_TASK is $GPUS_PER_TASK, which does not divide the $processes GPUs (GPUS) or processes (NPROC) of the run"
fi
if [ "$GPUS" -gt 0 ]; then processes=$((processes / gpus_per_process)); fi

if [ "$GPUS_PER_TASK" -gt 1 ]; then set -- --gpus_per_task "$GPUS_PER_TASK" "$@"; fi
set -- -m eval.run --checkpoint "$checkpoint" --tasks "$tasks" "$@"
if [ -n "${PARTITION:-}" ]; then
    gpus_per_node=$GPUS_PER_NODE
    if [ "$gpus_per_process" -gt "$gpus_per_node" ]; then
        die "GPUS_PER_TASK is $GPUS_PER_TASK, but a node has $GPUS_PER_NODE GPUs (GPUS_PER_NODE); layers can be" \
            "spread within a node only, add --ring_attn for more"
    fi
    per_node=$((gpus_per_node / gpus_per_process))
    if [ "$processes" -lt "$per_node" ]; then per_node=$processes; fi
    set -- "$PYTHON" "$@"
    if [ -n "${QUOTA_TYPE:-}" ]; then set -- "--quotatype=$QUOTA_TYPE" "$@"; fi
    if [ "$GPUS" -gt 0 ]; then set -- "--gres=gpu:$((per_node * gpus_per_process))" "$@"; fi
    # shellcheck disable=SC2086  # SRUN_ARGS holds several words
    finish srun --partition="$PARTITION" --job-name="eval" --ntasks="$processes" --ntasks-per-node="$per_node" \
        --kill-on-bad-exit=1 ${SRUN_ARGS:-} "$@"
fi
where="$GPUS of its GPUs"
if [ "$GPUS" -eq 0 ]; then where="its CPU"; fi
echo "note: evaluating on this machine ($(uname -n)), on $where, processes: $processes; PARTITION=... means slurm" >&2
if [ "$processes" -gt 1 ]; then
    finish "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$processes" "$@"
fi
finish "$PYTHON" "$@"
