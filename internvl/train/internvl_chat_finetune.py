"""Fine-tune an InternVL2 checkpoint: `torchrun ... internvl/train/internvl_chat_finetune.py --help`.

This is the command that users know; the run itself is in finetune.py. shell/launch.sh starts it on one machine or under
slurm, and the recipes are in shell/internlm2_2b/ and shell/tiny/.
"""

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import record

from internvl.command import command
from internvl.parallel.launch import finish_distributed
from internvl.train.finetune import run_training
from internvl.train.run.preemption import EXIT_PREEMPTED


@record  # so that torchrun repeats the first rank's error at the end, after the others' errors that it caused
@command(go_on="start the same command again to continue from the last checkpoint")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code.

    It is 0 on success, 85 when a signal stopped the run after saving a checkpoint, 86 when the run does not get on.
    """
    return run_training(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    exit_code = main() or 0  # `record` turns the exit of --help into None
    if exit_code in (0, EXIT_PREEMPTED):
        finish_distributed(exit_code)
    sys.exit(exit_code)
