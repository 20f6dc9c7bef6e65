#!/bin/sh
# Start training: sh shell/launch.sh [--dry-run] FLAGS...     (FLAGS: internvl/train/internvl_chat_finetune.py --help)
#
#   LAUNCHER         slurm | pytorch | none     default: slurm inside an allocation or with PARTITION, else pytorch
#   GPUS             processes in all           default: slurm 32, else those of this machine
#   GPUS_PER_NODE    processes per machine      default: slurm 8, else the GPUs found here
#   NPROC            processes on a CPU machine default: 1
#   CHUNK_NUM        processes that share a row default: 1 (more: --chunk_num, sequence parallelism)
#   BATCH_SIZE       rows per optimiser step    default: GPUS / CHUNK_NUM * PER_DEVICE_BATCH_SIZE
#   PER_DEVICE_BATCH_SIZE                       default: 1 (packed rows; otherwise documents per process)
#   MASTER_PORT      default: a free one        MASTER_ADDR, NNODES, NODE_RANK: torchrun on several machines
#   PARTITION CPUS_PER_TASK GRES JOB_NAME QUOTA_TYPE SRUN_ARGS      slurm; each is used only when set
#   PYTHON           default: .venv/bin/python of this repository, else python3
#   OMP_NUM_THREADS  default on CPU: cores / processes per machine
#
# --dry-run prints the command and runs nothing.
set -eu

die() { echo "error: $*" >&2; exit 2; }

dry_run=0
count=$#
while [ "$count" -gt 0 ]; do
    argument=$1; shift; count=$((count - 1))
    if [ "$argument" = --dry-run ]; then dry_run=1; continue; fi
    # A flag decides over the variable, here as for the program.
    if [ "${previous:-}" = --chunk_num ]; then CHUNK_NUM=$argument; fi
    case $argument in --chunk_num=*) CHUNK_NUM=${argument#*=} ;; esac
    previous=$argument
    set -- "$@" "$argument"
done

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

if [ -z "${LAUNCHER:-}" ]; then
    if [ -n "${PARTITION:-}${SLURM_JOB_ID:-}" ] && command -v srun >/dev/null; then LAUNCHER=slurm; else LAUNCHER=pytorch; fi
fi
export LAUNCHER

# How many processes, and where.
on_cpu=0
case $LAUNCHER in
slurm)
    GPUS=${GPUS:-32}
    GPUS_PER_NODE=${GPUS_PER_NODE:-8}
    [ "$GPUS_PER_NODE" -le "$GPUS" ] || GPUS_PER_NODE=$GPUS ;;
pytorch)
    found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
    [ "$found" -gt 0 ] || on_cpu=1
    NNODES=${NNODES:-1}
    [ -z "${GPUS:-}" ] || found=$((GPUS / NNODES))
    [ "$found" -gt 0 ] || found=1
    if [ "$on_cpu" = 1 ]; then found=${NPROC:-$found}; fi
    GPUS_PER_NODE=${GPUS_PER_NODE:-$found}
    GPUS=$((GPUS_PER_NODE * NNODES)) ;;
none)
    GPUS=1 GPUS_PER_NODE=1 ;;
*)
    die "LAUNCHER is '$LAUNCHER', expected slurm, pytorch or none" ;;
esac

# Gradient accumulation follows from the batch size.
CHUNK_NUM=${CHUNK_NUM:-1}
groups=$((GPUS / CHUNK_NUM))
[ $((groups * CHUNK_NUM)) -eq "$GPUS" ] && [ "$groups" -gt 0 ] ||
    die "$GPUS processes cannot share rows among CHUNK_NUM $CHUNK_NUM each; use a CHUNK_NUM that divides GPUS"
[ "$CHUNK_NUM" = 1 ] || set -- "$@" --chunk_num "$CHUNK_NUM"
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-1}
BATCH_SIZE=${BATCH_SIZE:-$((groups * PER_DEVICE_BATCH_SIZE))}
GRADIENT_ACC=$((BATCH_SIZE / PER_DEVICE_BATCH_SIZE / groups))
[ $((GRADIENT_ACC * PER_DEVICE_BATCH_SIZE * groups)) -eq "$BATCH_SIZE" ] && [ "$GRADIENT_ACC" -gt 0 ] ||
    die "BATCH_SIZE $BATCH_SIZE is not a multiple of PER_DEVICE_BATCH_SIZE $PER_DEVICE_BATCH_SIZE x $groups groups of processes"

if [ "$on_cpu" = 1 ] && [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS=$(($(nproc) / GPUS_PER_NODE))
    [ "$OMP_NUM_THREADS" -gt 0 ] || OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
fi

# The command, from the inside out.
set -- internvl/train/internvl_chat_finetune.py \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" "$@"
case $LAUNCHER in
slurm)
    set -- --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" --kill-on-bad-exit=1 "$PYTHON" -u "$@"
    gres=${GRES-gpu:$GPUS_PER_NODE}
    [ -z "$gres" ] || set -- --gres="$gres" "$@"
    [ -z "${CPUS_PER_TASK:-}" ] || set -- --cpus-per-task="$CPUS_PER_TASK" "$@"
    [ -z "${QUOTA_TYPE:-}" ] || set -- --quotatype="$QUOTA_TYPE" "$@"
    [ -z "${PARTITION:-}" ] || set -- -p "$PARTITION" "$@"
    # SRUN_ARGS is a list of words on purpose.
    # shellcheck disable=SC2086
    set -- srun --job-name="${JOB_NAME:-v2pe}" ${SRUN_ARGS:-} "$@" ;;
pytorch)
    if [ "$NNODES" -gt 1 ]; then
        [ -n "${MASTER_ADDR:-}" ] || die "NNODES is $NNODES: export MASTER_ADDR (host of NODE_RANK 0) as well"
        set -- --nnodes="$NNODES" --node_rank="${NODE_RANK:-0}" --master_port="${MASTER_PORT:-29500}" "$@"
    else
        MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
        if [ -z "${MASTER_PORT:-}" ]; then
            MASTER_PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
        fi
        set -- --nnodes=1 --master_port="$MASTER_PORT" "$@"
    fi
    set -- "$PYTHON" -m torch.distributed.run --nproc_per_node="$GPUS_PER_NODE" --master_addr="$MASTER_ADDR" "$@" ;;
none)
    set -- "$PYTHON" -u "$@" ;;
esac

if [ "$dry_run" = 1 ]; then
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:=,+-]*|'') printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
        *) printf '%s ' "$word" ;;
        esac
    done
    echo
    exit 0
fi
exec "$@"
