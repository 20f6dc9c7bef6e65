"""Runs the training entry several times in one process, with faults: argv[1] is a json list of [flags, faults].

A fault [kind, step, rank] strikes in the given step, or in the save after it:

    raise   ends the run on all ranks with an exception; it is not started again
    kill    SIGKILL to the rank
    stuck   the files of the step's checkpoint are never written, in the background of the steps that follow
    save    SIGKILL to rank 0 when all files of the step's checkpoint are written, and it has not got its name yet
    term    SIGTERM to the rank: the run saves and stops; it is started again
    slow    the rank sleeps for a while
    hang    the rank sleeps for ever
    gone    the folder of the pictures is gone for a while
    full    no file can grow beyond 20 kB until the run has failed; its error goes to error.txt, it is started again
"""

import json
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from internvl.errors import CheckpointError
from internvl.parallel.launch import finish_distributed
from internvl.train.checkpoint.contents import step_of
from internvl.train.checkpoint.writing import CheckpointWriter
from internvl.train.finetune import run_training
from internvl.train.run.preemption import EXIT_PREEMPTED
from internvl.train.trainer import V2PETrainer

STEP_FAULTS = ("raise", "kill", "term", "full", "slow", "hang", "gone")
OUTAGE_S = 2.5
NO_LIMIT = resource.getrlimit(resource.RLIMIT_FSIZE)


class Crash(Exception):
    pass


class FaultyRun:
    def __init__(self, arguments: list[str], faults: list[list]):
        self.arguments, self.faults = arguments, faults
        self.output_dir = Path(arguments[arguments.index("--output_dir") + 1])

    def start(self) -> None:
        compute_loss, publish, save = V2PETrainer.compute_loss, CheckpointWriter.publish, CheckpointWriter.save
        is_stuck = any(kind == "stuck" for kind, _, _ in self.faults)

        def compute_faulty_loss(trainer, *args, **kwargs):
            if not is_stuck and any(step == trainer.state.global_step + 1 for _, step, _ in self.faults):
                trainer.writer.finish()  # the checkpoint before is to be there
            self.strike(trainer.args.process_index, trainer.state.global_step + 1, STEP_FAULTS)
            return compute_loss(trainer, *args, **kwargs)

        def publish_faulty(writer, staged, *args, **kwargs):
            self.strike(0, step_of(staged), ("save",))
            return publish(writer, staged, *args, **kwargs)

        def save_faulty(writer, state_dict, path):
            step = int(re.search(r"checkpoint-(\d+)", str(path))[1])
            writer.jobs.append(lambda: self.strike(0, step, ("stuck",)))
            save(writer, state_dict, path)

        V2PETrainer.compute_loss = compute_faulty_loss  # type: ignore[method-assign]
        CheckpointWriter.publish, CheckpointWriter.save = publish_faulty, save_faulty  # type: ignore[method-assign]
        try:
            while not self.is_done():
                pass
        finally:
            V2PETrainer.compute_loss = compute_loss  # type: ignore[method-assign]
            CheckpointWriter.publish, CheckpointWriter.save = publish, save  # type: ignore[method-assign]

    def strike(self, process_index: int, step: int, kinds: tuple[str, ...]) -> None:
        for fault in [fault for fault in self.faults if fault[0] in kinds and fault[1] == step]:
            self.faults.remove(fault)
            kind, _, rank = fault
            if kind == "raise":
                raise Crash
            if kind == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, NO_LIMIT[1]))
            elif process_index == rank:
                self.strike_rank(kind)

    def strike_rank(self, kind: str) -> None:
        if kind in ("slow", "hang", "stuck"):
            time.sleep(OUTAGE_S if kind == "slow" else 1e6)
        elif kind == "gone":
            images = Path(self.arguments[self.arguments.index("--meta_path") + 1]).with_name("images")
            away = images.rename(images.with_name("away"))
            threading.Timer(OUTAGE_S, away.rename, [images]).start()
        else:
            os.kill(os.getpid(), signal.SIGTERM if kind == "term" else signal.SIGKILL)

    def is_done(self) -> bool:
        try:
            return run_training(list(self.arguments)) != EXIT_PREEMPTED
        except Crash:
            return True
        except CheckpointError as error:
            if resource.getrlimit(resource.RLIMIT_FSIZE) == NO_LIMIT:
                raise
            resource.setrlimit(resource.RLIMIT_FSIZE, NO_LIMIT)
            (self.output_dir / "error.txt").write_text(str(error))
            return False
        finally:
            unset_hf_deepspeed_config()  # transformers keeps ZeRO-3 in a global, which the next run would load under


if __name__ == "__main__":
    for number, (arguments, faults) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        try:
            FaultyRun(arguments, faults).start()
        except Exception:
            sys.stderr.write(f"run {number}: {' '.join(arguments)}\n{traceback.format_exc()}")
            sys.exit(1)
    finish_distributed()
