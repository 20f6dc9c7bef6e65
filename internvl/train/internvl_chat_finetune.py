"""Fine-tune an InternVL2 checkpoint: `torchrun ... internvl/train/internvl_chat_finetune.py --help`.

This is the command that users know; the run itself is in finetune.py. shell/launch.sh starts it on one machine or under
slurm, and the recipes are in shell/internlm2_2b/ and shell/tiny/.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import record

from internvl.errors import InternVLError
from internvl.parallel.launch import finish_distributed
from internvl.train.finetune import run_training
from internvl.train.run.preemption import EXIT_FAILED_TWICE
from internvl.train.run.state import RepeatedFailure


@record  # so that torchrun repeats the first rank's error at the end, after the others' errors that it caused
def main() -> None:
    """Command line.

    Exit code 0 on success, 2 with one clear line for an error that the user can correct, 85 when a signal stopped the
    run after saving a checkpoint, 86 when it failed in the same step twice.
    """
    try:
        code = run_training(sys.argv[1:])
    except InternVLError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_FAILED_TWICE if isinstance(error, RepeatedFailure) else 2)
    finish_distributed(code)


if __name__ == "__main__":
    main()
