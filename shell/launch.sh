#!/bin/sh
# Start training: sh shell/launch.sh [--dry-run] [FILE.yaml] FLAGS...   (internvl/train/internvl_chat_finetune.py --help)
#
#   LAUNCHER         slurm | pytorch | deepspeed | none (a single process; single means the same)
#                                               default: slurm inside an allocation or with PARTITION, else pytorch
#   SUBMIT           1: submit with sbatch, follow the log, requeue after signals and crashes (shell/sbatch.sh)
#                    0: run here              default: 1 for slurm outside of an allocation, else 0
#   GPUS             processes in all           default: slurm 32, else those of this machine
#   GPUS_PER_NODE    processes per machine      default: slurm 8, else the GPUs found here
#   NPROC            processes on a CPU machine default: CHUNK_NUM
#   CHUNK_NUM        processes that share a row default: 1 (more: --chunk_num, sequence parallelism)
#   BATCH_SIZE       rows per optimiser step    default: GPUS / CHUNK_NUM * PER_DEVICE_BATCH_SIZE
#   PER_DEVICE_BATCH_SIZE                       default: 1 (packed rows; otherwise documents per process)
#   MASTER_PORT      default: a free one        MASTER_ADDR, NNODES, NODE_RANK: torchrun and deepspeed on several
#                    machines; inside a slurm step (and so with SUBMIT=1) they are found by themselves
#   PARTITION CPUS_PER_TASK GRES JOB_NAME QUOTA_TYPE SRUN_ARGS      slurm; each is used only when set
#   SBATCH_ARGS TIME_LIMIT SIGNAL_SECONDS LOG_DIR                   SUBMIT=1: shell/sbatch.sh
#   PYTHON           default: .venv/bin/python of this repository, else python3
#   OMP_NUM_THREADS  default on CPU: cores / processes per machine
#
#
# --dry-run prints the command and runs nothing.
set -eu
. "$(dirname -- "$0")/prelude.sh"

config=
case ${1:-} in
*.yaml | *.yml | *.json)
    config=$1
    shift ;;
esac

# A flag decides over the variable, here as for the program.
previous=
for argument in "$@"; do
    case $previous in
    --chunk_num) CHUNK_NUM=$argument ;;
    --output_dir) RUN_DIR=$argument ;;
    --model_name_or_path) MODEL_PATH=$argument ;;
    esac
    case $argument in
    --chunk_num=*) CHUNK_NUM=${argument#*=} ;;
    --output_dir=*) RUN_DIR=${argument#*=} ;;
    esac
    previous=$argument
done

check_counts 1 GPUS NNODES NPROC CHUNK_NUM BATCH_SIZE PER_DEVICE_BATCH_SIZE
check_counts 0 NODE_RANK MASTER_PORT
check_words LAUNCHER MASTER_ADDR OMP_NUM_THREADS
check_switches SUBMIT FOLLOW
check_texts JOB_NAME LOG_DIR RUN_DIR
check_slurm

root=$(cd "$(dirname -- "$0")/.." && pwd)
cd "$root"
choose_python "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export_cuda_settings

if [ -z "${LAUNCHER:-}" ]; then
    LAUNCHER=pytorch
    if [ -n "${PARTITION:-}" ]; then
        LAUNCHER=slurm
    elif [ -n "${SLURM_JOB_ID:-}" ] && command -v srun >/dev/null; then
        LAUNCHER=slurm
    fi
fi
[ "$LAUNCHER" != single ] || LAUNCHER=none
export LAUNCHER
if [ -z "${SUBMIT:-}" ]; then
    SUBMIT=0
    if [ "$LAUNCHER" = slurm ]; then SUBMIT=1; fi
fi
if [ -n "${SLURM_JOB_ID:-}" ]; then SUBMIT=0; fi
if [ "$LAUNCHER" = slurm ] || [ "$SUBMIT" = 1 ]; then need_slurm srun; fi
if [ "$SUBMIT" = 1 ]; then need_slurm sbatch; fi
case ${MODEL_PATH:-} in
pretrained/*) need_checkpoint "$MODEL_PATH" ;; # others may be made by a job that this one waits for
esac

# How many processes, and where.
on_cpu=0
case $SUBMIT,$LAUNCHER in
*,slurm | 1,pytorch | 1,deepspeed)
    GPUS=${GPUS:-32}
    GPUS_PER_NODE=${GPUS_PER_NODE:-8}
    [ "$GPUS_PER_NODE" -le "$GPUS" ] || GPUS_PER_NODE=$GPUS
    NNODES=${NNODES:-$(((GPUS + GPUS_PER_NODE - 1) / GPUS_PER_NODE))} ;;
*,pytorch | *,deepspeed)
    if [ -n "${SLURM_STEP_ID:-}" ]; then
        NNODES=${NNODES:-$SLURM_STEP_NUM_NODES} NODE_RANK=${NODE_RANK:-$SLURM_NODEID}
        MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)}
        MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID * 100 % 12000))}
    fi
    found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
    [ "$found" -gt 0 ] || on_cpu=1
    NNODES=${NNODES:-1}
    if [ "$on_cpu" = 1 ]; then found=${CHUNK_NUM:-1}; fi
    [ -z "${GPUS:-}" ] || found=$((GPUS / NNODES))
    [ "$found" -gt 0 ] || found=1
    if [ "$on_cpu" = 1 ]; then found=${NPROC:-$found}; fi
    GPUS_PER_NODE=${GPUS_PER_NODE:-$found}
    GPUS=$((GPUS_PER_NODE * NNODES)) ;;
*,none)
    GPUS=1 GPUS_PER_NODE=1 NNODES=1 ;;
*)
    refuse LAUNCHER "slurm, pytorch, deepspeed or none" ;;
esac

# Gradient accumulation follows from the batch size.
CHUNK_NUM=${CHUNK_NUM:-1}
groups=$((GPUS / CHUNK_NUM))
if [ $((groups * CHUNK_NUM)) -ne "$GPUS" ] || [ "$groups" -lt 1 ]; then
    die "$GPUS processes cannot share rows among CHUNK_NUM $CHUNK_NUM each; use a CHUNK_NUM that divides GPUS"
fi
if [ "$CHUNK_NUM" != 1 ] || [ -n "$config" ]; then set -- "$@" --chunk_num "$CHUNK_NUM"; fi
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-1}
BATCH_SIZE=${BATCH_SIZE:-$((groups * PER_DEVICE_BATCH_SIZE))}
GRADIENT_ACC=$((BATCH_SIZE / PER_DEVICE_BATCH_SIZE / groups))
if [ $((GRADIENT_ACC * PER_DEVICE_BATCH_SIZE * groups)) -ne "$BATCH_SIZE" ] || [ "$GRADIENT_ACC" -lt 1 ]; then
    die "BATCH_SIZE $BATCH_SIZE is not a multiple of PER_DEVICE_BATCH_SIZE $PER_DEVICE_BATCH_SIZE x $groups groups of processes"
fi

if [ "$on_cpu" = 1 ] && [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS=$(($(nproc) / GPUS_PER_NODE))
    [ "$OMP_NUM_THREADS" -gt 0 ] || OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
fi

# What slurm is asked for: the words of srun's, salloc's and sbatch's common options.
allocation=
case $LAUNCHER in
slurm) tasks="--ntasks=$GPUS --ntasks-per-node=$GPUS_PER_NODE" ;;
*) tasks="--ntasks=$NNODES --ntasks-per-node=1" ;; # which start the node's processes
esac
gres=${GRES-gpu:$GPUS_PER_NODE}
[ -z "${PARTITION:-}" ] || allocation="$allocation -p $PARTITION"
[ -z "${QUOTA_TYPE:-}" ] || allocation="$allocation --quotatype=$QUOTA_TYPE"
[ -z "$gres" ] || allocation="$allocation --gres=$gres"
if [ -n "${CPUS_PER_TASK:-}" ]; then
    cpus=$CPUS_PER_TASK
    [ "$LAUNCHER" = slurm ] || cpus=$((CPUS_PER_TASK * GPUS_PER_NODE))
    tasks="$tasks --cpus-per-task=$cpus"
    export SRUN_CPUS_PER_TASK="$cpus" # srun inside sbatch does not take it from the job
fi

# The command, from the inside out. Lists of words are split on purpose.
# shellcheck disable=SC2086
if [ "$SUBMIT" = 1 ] && [ "$LAUNCHER" != slurm ]; then
    # A step with one task per node, which starts this script again with the addresses that the job has by then.
    export GPUS GPUS_PER_NODE NNODES CHUNK_NUM BATCH_SIZE PER_DEVICE_BATCH_SIZE
    set -- srun $tasks --kill-on-bad-exit=1 ${SRUN_ARGS:-} sh shell/launch.sh ${config:+"$config"} "$@"
else
    set -- internvl/train/internvl_chat_finetune.py ${config:+"$config"} \
        --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" "$@"
    case $LAUNCHER in
    slurm)
        # USR1 must not kill a process that has no handler yet; child processes inherit this.
        set -- $tasks --kill-on-bad-exit=1 sh -c 'trap "" USR1; exec "$@"' sh "$PYTHON" -u "$@"
        [ "$SUBMIT" = 1 ] || set -- $allocation --job-name="${JOB_NAME:-v2pe}" "$@"
        set -- srun ${SRUN_ARGS:-} "$@" ;;
    pytorch | deepspeed)
        if [ "$NNODES" -gt 1 ]; then
            [ -n "${MASTER_ADDR:-}" ] || die "NNODES is $NNODES: export MASTER_ADDR (host of NODE_RANK 0) as well"
            MASTER_PORT=${MASTER_PORT:-29500}
        else
            MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
            if [ -z "${MASTER_PORT:-}" ]; then
                MASTER_PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
            fi
        fi
        trap '' USR1
        if [ "$LAUNCHER" = pytorch ]; then
            [ "$NNODES" -eq 1 ] || set -- --node_rank="${NODE_RANK:-0}" "$@"
            set -- "$PYTHON" -m torch.distributed.run --nproc_per_node="$GPUS_PER_NODE" \
                --master_addr="$MASTER_ADDR" --nnodes="$NNODES" --master_port="$MASTER_PORT" "$@"
        else
            [ "$on_cpu" = 0 ] || export DS_ACCELERATOR=cpu
            # deepspeed reaches several machines by itself with a hostfile and ssh; here each machine starts its own part.
            world=$("$PYTHON" - "$NNODES" "$GPUS_PER_NODE" <<'END'
import base64, json, sys
nodes, processes = map(int, sys.argv[1:])
layout = {f"node{node}": list(range(processes)) for node in range(nodes)}
print(base64.urlsafe_b64encode(json.dumps(layout).encode()).decode())
END
            )
            set -- "$PYTHON" -m deepspeed.launcher.launch --world_info="$world" --node_rank="${NODE_RANK:-0}" \
                --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" "$@"
        fi ;;
    none)
        set -- "$PYTHON" -u "$@" ;;
    esac
fi
# shellcheck disable=SC2086
if [ "$SUBMIT" = 1 ]; then
    RUN_DIR=${RUN_DIR:-}
    export RUN_DIR
    set -- sh shell/sbatch.sh $allocation $tasks --job-name="${JOB_NAME:-v2pe}" shell/job.sh "$@"
fi

finish "$@"
