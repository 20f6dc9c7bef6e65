"""What a checkpoint costs the run that saves it: the step that saves, and the steps that follow, against the others.

    python benchmarks/checkpoint.py [--hidden 512] [--layers 8] [--tokens 2048] [--steps 24] [--zero 0|1|2|3]

Two runs of the same steps, by the user's command in this process: files written in the background, and while training
waits (`--save_in_background False`). A checkpoint is saved every 8 steps. Printed: bytes of a checkpoint, the median
second of a step without any saving, and, as ratios to it, the steps that saved and those at whose beginning the files
were still being written (they share the processor with the thread that writes; on a GPU they do not).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from internvl.tools.make_tiny import TinySpec, make_checkpoint
from internvl.train import finetune

SAVE_STEPS = 8
DEEPSPEED = Path(__file__).parents[1] / "shell/deepspeed"


class Clock(TrainerCallback):
    """Seconds of every step, the saving after it included, and whether files were being written when it began."""

    def __init__(self, trainer: finetune.V2PETrainer):
        self.trainer = trainer
        self.seconds: list[float] = []
        self.writing: list[bool] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The step before ends here, with what was saved after it."""
        self._note()
        self.started = time.perf_counter()
        self.writing.append(self.trainer.writer.is_writing)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """The last step."""
        self._note()

    def _note(self) -> None:
        if len(self.writing) > len(self.seconds):
            self.seconds.append(time.perf_counter() - self.started)


def make_data(folder: Path) -> Path:
    """Texts of about 150 tokens; returns the meta file."""
    folder.mkdir()
    turns = [{"from": "human", "value": "Count."}, {"from": "gpt", "value": " ".join(map(str, range(100)))}]
    (folder / "texts.jsonl").write_text((json.dumps({"conversations": turns}) + "\n") * 400)
    (folder / "meta.json").write_text(json.dumps({"texts": {"annotation": "texts.jsonl", "root": "."}}))
    return folder / "meta.json"


def run(args: argparse.Namespace, folder: Path, *, in_background: bool) -> tuple[Clock, int]:
    """The clock of a run and the bytes of its last checkpoint."""
    clocks: list[Clock] = []
    build = finetune._build_trainer

    def build_with_clock(*given: Any, **options: Any) -> finetune.V2PETrainer:
        trainer = build(*given, **options)
        clocks.append(Clock(trainer))
        trainer.add_callback(clocks[-1])
        return trainer

    finetune._build_trainer = build_with_clock
    out = folder / f"run-{in_background}"
    options = {
        "model_name_or_path": folder / "model",
        "meta_path": folder / "data/meta.json",
        "output_dir": out,
        "use_packed_ds": True,
        "max_packed_tokens": args.tokens,
        "max_seq_length": args.tokens,
        "max_steps": args.steps,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "save_total_limit": 1,
        "save_in_background": in_background,
        "report_to": "none",
        **({"deepspeed": DEEPSPEED / f"zero{args.zero}.json"} if args.zero else {}),
    }
    try:
        finetune.run_training([text for name, value in options.items() for text in (f"--{name}", str(value))])
    finally:
        finetune._build_trainer = build
    (checkpoint,) = out.glob("checkpoint-*")
    return clocks[0], sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())


def main() -> None:
    """Compare the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="width of the decoder")
    parser.add_argument("--layers", type=int, default=8, help="layers of the decoder")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=24, help="optimiser steps of each run")
    parser.add_argument("--zero", type=int, default=0, choices=[0, 1, 2, 3], help="DeepSpeed's stage; 0: without")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"hidden_size": args.hidden, "layers": args.layers, "heads": 8, "kv_heads": 8}
        make_checkpoint(folder / "model", TinySpec(**sizes, intermediate_size=3 * args.hidden))
        make_data(folder / "data")
        print("files are written | bytes | s/step | step that saves | steps during writing (number)")
        for in_background in (True, False):
            clock, size = run(args, folder, in_background=in_background)
            steps = list(zip(clock.seconds, clock.writing, strict=True))[1:]
            saving = [s for number, (s, _) in enumerate(steps, start=2) if number % SAVE_STEPS == 0]
            during = [s for s, writing in steps if writing]
            quiet = statistics.median(
                s for number, (s, writing) in enumerate(steps, start=2) if number % SAVE_STEPS and not writing
            )
            where = "in the background" if in_background else "at once"
            later = f"{statistics.mean(during) / quiet:.2f}x ({len(during)})" if during else "-"
            print(f"{where} | {size:,} | {quiet:.2f} | {statistics.mean(saving) / quiet:.2f}x | {later}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
