"""The training entry, in which rank 1 fails at its third step: argv[1] says how, the rest are flags."""

import os
import signal
import sys
import time
from pathlib import Path

from internvl.train.internvl_chat_finetune import main
from internvl.train.trainer import V2PETrainer

if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    output_dir = Path(arguments[arguments.index("--output_dir") + 1])
    compute_loss = V2PETrainer.compute_loss

    def fail_late(self, *args, **kwargs):
        if self.state.global_step == 2 and self.args.process_index == 1:
            (output_dir / "failed_at").write_text(str(time.time()))
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this rank is broken")
        return compute_loss(self, *args, **kwargs)

    V2PETrainer.compute_loss = fail_late  # type: ignore[method-assign]
    sys.argv = [sys.argv[0], *arguments]
    main()
