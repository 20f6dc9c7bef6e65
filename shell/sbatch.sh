#!/bin/sh
# Submit a job that outlives its time limit and its nodes, and show its log until it ends:
#
#   sh shell/sbatch.sh [SBATCH OPTIONS...] shell/job.sh COMMAND...        (shell/launch.sh writes such a line itself)
#
#   TIME_LIMIT       of one start of the job, as for --time       default: the partition's
#   SIGNAL_SECONDS   seconds before the limit at which the run is told to save and stop      default: 300
#   LOG_DIR          folder of the log, one file per job, appended to after a requeue          default: work_dirs/slurm
#   SBATCH_ARGS      further options of sbatch (--account=..., --array=...)
#   FOLLOW           0: only submit, print the job's number       default: 1
#
# Interrupting this script (Ctrl-C) leaves the job alone. Exit code: that of the job, 0 when it completed.
set -eu
. "$(dirname -- "$0")/prelude.sh"
[ $# -gt 0 ] || die "nothing to submit; see sh shell/sbatch.sh --help"
check_texts LOG_DIR
check_switches FOLLOW
check_slurm
: "${LOG_DIR:=work_dirs/slurm}" "${SIGNAL_SECONDS:=300}" "${FOLLOW:=1}"
export SIGNAL_SECONDS

[ -z "${TIME_LIMIT:-}" ] || set -- --time="$TIME_LIMIT" "$@"
# SBATCH_ARGS is a list of words on purpose.
# shellcheck disable=SC2086
set -- sbatch --parsable --requeue --open-mode=append --signal="B:USR1@$SIGNAL_SECONDS" \
    --output="$LOG_DIR/%x-%j.log" --chdir="$PWD" ${SBATCH_ARGS:-} "$@"
[ -z "$dry_run" ] || finish "$@"
need_slurm sbatch
mkdir -p "$LOG_DIR"
job=$("$@")
job=${job%%;*}
if [ "$FOLLOW" = 0 ]; then
    echo "$job"
    exit 0
fi

field() { scontrol -o show job "$job" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }

log=$(field StdOut)
echo "job $job, log $log (Ctrl-C ends this view, not the job; scancel $job ends the job)" >&2
touch "$log"
tail -n +1 -f "$log" &
viewer=$!
trap 'kill "$viewer" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
while :; do
    case $(squeue -h -j "$job" -o %T 2>/dev/null) in
    '' | COMPLETED* | FAILED* | CANCELLED* | TIMEOUT* | NODE_FAIL* | OUT_OF_MEMORY* | DEADLINE*) break ;;
    esac
    sleep 2
done
sleep 1 # the last lines
state=$(field JobState) code=$(field ExitCode)
echo "job $job: ${state:-ended}" >&2
[ "$state" != COMPLETED ] || exit 0
code=${code%%:*}
[ "${code:-0}" -gt 0 ] || code=1
exit "$code"
