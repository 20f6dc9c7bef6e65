#!/bin/sh
# The batch script of a training job, for sbatch: runs COMMAND (a job step) and requeues the job while that helps.
#
#   USR1 before the time limit (sbatch --signal=B:USR1@N)   the run is told to save and stop, then the job is requeued
#   ... but it hangs and does not stop                      requeued all the same, from its last checkpoint
#   COMMAND failed                                          requeued; the run itself refuses after 3 starts without progress
#   COMMAND failed before training began, or by user error  not requeued
#   finished; scancel                                       not requeued
#   node lost, scontrol requeue                             slurm requeues by itself (sbatch --requeue)
#
# RUN_DIR is the run's output folder: its run_state.json (internvl/train/run/state.py) tells how a start ended.
set -u
# Slurm runs a copy of this script, in the folder of the repository.
folder=$(dirname -- "$0")
[ -f "$folder/prelude.sh" ] || folder=shell
. "$folder/prelude.sh"
[ $# -gt 0 ] || die "nothing to run; see sh shell/job.sh --help"
check_counts 0 SIGNAL_SECONDS
[ -z "$dry_run" ] || finish "$@"

say() { echo "$(date '+%H:%M:%S') job ${SLURM_JOB_ID:-?} start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"; }
look_up() { sed -n "s/^ *\"$1\": *\"\{0,1\}\([a-z0-9]*\).*/\1/p" "${RUN_DIR:-.}/run_state.json" 2>/dev/null; }

asked='' cancelled='' waited=0
patience=$((${SIGNAL_SECONDS:-300} * 4 / 5))
trap 'asked=1' USR1
trap 'asked=1 cancelled=1' TERM

attempt_before=$(look_up attempt)
say "$*"
"$@" &
step=$!
# A trap runs when `wait` returns, which then returns again for the step itself. The signal is repeated: ranks that are
# still loading do not hear the first.
while kill -0 "$step" 2>/dev/null; do
    if [ -n "$asked" ]; then
        [ "$waited" -lt "$patience" ] || break
        scancel --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null
        sleep 3 &
        wait $!
        waited=$((waited + 3))
    else
        wait "$step"
    fi
done
if kill -0 "$step" 2>/dev/null; then
    say "did not stop within $waited s; requeued"
    [ -n "$cancelled" ] || scontrol requeue "$SLURM_JOB_ID"
    exit 1
fi
wait "$step"
code=$?
status=$(look_up status)
[ "$code" != 0 ] || exit 0
if [ -n "$cancelled" ]; then
    say "cancelled (code $code); what was saved is in ${RUN_DIR:-the output folder}"
    exit "$code"
fi
if [ "$(look_up attempt)" = "$attempt_before" ] && [ "$code" != 2 ] &&
    [ "$status" = running ] && [ "$(look_up starts_without_progress)" = 3 ]; then
    code=86 # what the run refused with; srun and torchrun may report another rank's code
fi
if [ "$code" = 2 ] || [ "$code" = 86 ] || [ "$status" = stopped ]; then
    say "stopped with code $code, see above; not requeued"
    exit "$code"
fi
if [ "$(look_up attempt)" = "$attempt_before" ]; then
    say "failed (code $code) before training began; not requeued"
    exit "$code"
fi
if [ "$status" = finished ]; then
    say "finished (code $code after the last save)"
    exit 0
elif [ "$status" = preempted ]; then
    say "saved after step $(look_up step); requeued"
else
    say "failed in step $(look_up step) (code $code); requeued"
fi
trap - TERM
scontrol requeue "$SLURM_JOB_ID" && sleep 60 # requeueing ends this script
exit "$code"
