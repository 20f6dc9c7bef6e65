#!/bin/sh
# What every script of shell/, scripts/ and studies/ begins with: it is read with `. shell/prelude.sh`, and does nothing by itself.
#
#   --help       among the arguments of a script: prints the comment at its top and ends
#   --dry-run    is taken out of the arguments: commands are printed and not run; DRY_RUN=1 means the same
#
# An empty variable counts as one that is not set. A value that is none of what a variable may hold ends the script with
# one line, code 2. Names are not expanded: a * in a variable stays one.
set -f

die() { echo "error: $*" >&2; exit 2; }

# A value as it may stand in a line.
show() { printf '%.60s' "$1" | LC_ALL=C tr -c '[:print:]' ' '; }

refuse() { # NAME EXPECTED
    eval "value=\${$1}"
    die "$1 is '$(show "$value")', expected $2"
}

check_counts() { # LOWEST NAME...: whole numbers, written so that no shell takes them for octal or too large
    lowest=$1
    shift
    for name in "$@"; do
        eval "value=\${$name:-$lowest}"
        case $value in
            *[!0-9]* | 0?* | ??????????*) refuse "$name" "a whole number from $lowest to 999999999" ;;
        esac
        [ "$value" -ge "$lowest" ] || refuse "$name" "a whole number from $lowest to 999999999"
    done
}

check_numbers() { # NAME...: such as 5e-6, 0.25, 1/16, -1
    for name in "$@"; do
        eval "value=\${$name:-0}"
        case $value in
            *[!0-9.e/+-]* | [!0-9.-]* | ?????????????????????*) refuse "$name" "a number" ;;
        esac
    done
}

check_switches() { # NAME...
    for name in "$@"; do
        eval "value=\${$name:-0}"
        case $value in
            0 | 1) ;;
            *) refuse "$name" "0 or 1" ;;
        esac
    done
}

check_words() { # NAME...: what slurm and torchrun take as a name, an address, a time
    for name in "$@"; do
        eval "value=\${$name:-}"
        case $value in
            -* | *[!A-Za-z0-9_.,:/@+=-]*) refuse "$name" "one word of letters, digits and _ . , : / @ + = -" ;;
        esac
    done
}

check_texts() { # NAME...: paths and names
    for name in "$@"; do
        eval "value=\${$name:-}"
        case $value in
            -* | *[[:cntrl:]]*) refuse "$name" "one line that does not begin with -" ;;
        esac
    done
}

# Slurm's variables. A placeholder such as PARTITION='your partition' is none of its names.
check_slurm() {
    case ${PARTITION:-} in
        -* | *[!A-Za-z0-9_.,:/@+=-]*) refuse PARTITION "the name of a slurm partition (sinfo lists them)" ;;
    esac
    check_words QUOTA_TYPE GRES TIME_LIMIT
    check_counts 1 CPUS_PER_TASK GPUS_PER_NODE
    check_counts 0 SIGNAL_SECONDS
}

need_slurm() { # COMMAND
    if [ -z "$dry_run" ] && ! command -v "$1" >/dev/null 2>&1; then
        asks=${PARTITION:+PARTITION=$(show "$PARTITION")}
        die "${asks:-LAUNCHER=${LAUNCHER:-slurm}} asks for slurm, but $1 is not installed here; start where slurm is, or" \
            "leave PARTITION out to run on this machine"
    fi
}

in_hub_cache() { # ORG/NAME
    hub=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub}
    case $1 in *[!A-Za-z0-9._/-]* | /* | */*/* | [!A-Za-z0-9]*) return 1 ;; */*) ;; *) return 1 ;; esac
    [ -d "$hub/models--${1%%/*}--${1#*/}/snapshots" ]
}

need_checkpoint() { # FOLDER or hub id
    if [ -z "$dry_run" ] && [ ! -d "$1" ] && ! in_hub_cache "$1"; then
        die "checkpoint '$(show "$1")': no such folder; a model of the hub is downloaded first:" \
            "hf download OpenGVLab/InternVL2-2B --local-dir pretrained/InternVL2-2B"
    fi
}

choose_python() { # FOLDER: PYTHON, by default that of the repository in FOLDER
    check_texts PYTHON
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=python3
        [ ! -x "$1/.venv/bin/python" ] || PYTHON=$1/.venv/bin/python
    fi
    command -v "$PYTHON" >/dev/null 2>&1 || refuse PYTHON "a Python interpreter that is installed here"
}

print_command() {
    for word in "$@"; do
        case $word in
            *\'*) printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
            *[!A-Za-z0-9_./:=,+-]* | '') printf "'%s' " "$word" ;;
            *) printf '%s ' "$word" ;;
        esac
    done
    echo
}

# What torch reads at its start: memory that fits rows of any length; and the last collectives of every rank, written to
# /tmp/nccl_trace_rank_* when one of them times out. What is set already stays.
export_cuda_settings() {
    export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
    export TORCH_NCCL_DUMP_ON_TIMEOUT="${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}"
    export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}"
}

run() { if [ -n "$dry_run" ]; then print_command "$@"; else "$@"; fi; } # COMMAND...

finish() { # COMMAND...: the script's last one
    if [ -z "$dry_run" ]; then exec "$@"; fi
    print_command "$@"
    exit 0
}

value='' dry_run=''
[ "${DRY_RUN:-0}" = 0 ] || dry_run=1
count=$#
while [ "$count" -gt 0 ]; do
    case $1 in
        -h | --help)
            sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"
            exit 0
            ;;
        --dry-run) dry_run=1 ;;
        *) set -- "$@" "$1" ;;
    esac
    shift
    count=$((count - 1))
done
if [ -n "$dry_run" ]; then export DRY_RUN=1; fi
