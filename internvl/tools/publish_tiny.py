"""Publish a model of scripts/pretrain_tiny.sh in the repository: weights, tokenizer, card, log; code as links.

python -m internvl.tools.publish_tiny --checkpoint CKPT --runs PHASE_1 PHASE_2 --scores EVALUATION

OUT/model.safetensors, config.json, generation_config.json, tokenizer files     as they are in CKPT
OUT/*.py                links to internvl/model, so that AutoModel.from_pretrained(OUT, trust_remote_code=True) works
OUT/training_log.csv    loss and learning rate of all runs
OUT/README.md           model card with the scores of the evaluation
"""

import argparse
import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

from eval.metrics.estimate import Estimate, read_estimate
from eval.report.tables import format_interval
from internvl.atomic import stage_folders
from internvl.command import command
from internvl.errors import CheckpointError
from internvl.parser import CommandParser

CODE = Path(__file__).parents[1] / "model"
DEFAULT_OUT = Path("pretrained", "InternVL2-Tiny")
_COPIED = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json",
           "added_tokens.json", "chat_template.jinja")  # fmt: skip
_TASKS = {
    "mm_niah/retrieval-text-test": "word of a context (Which fruit?)",
    "mm_niah/retrieval-image-test": "first of two handwritten digits in a context",
    "mm_niah/reasoning-image-test": "second of two handwritten digits in a context",
    "vqa/chartqa-test-augmented": "colour of the highest or lowest bar of a chart",
}
_LOG_COLUMNS = ("run", "step", "loss", "learning_rate", "tokens_per_second")


@dataclass(frozen=True)
class RunSummary:
    """What a training run took: optimiser steps, samples, tokens, seconds."""

    steps: int
    samples: float
    tokens: float
    seconds: float

    @classmethod
    def read(cls, run: Path) -> "RunSummary":
        """The summary of a run's folder."""
        content = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        return cls(**{field.name: content[field.name] for field in fields(cls)})


def publish(checkpoint: Path, runs: Sequence[Path], scores: Path, out: Path) -> None:
    """Replace `out` by what belongs in the repository.

    Args:
        checkpoint: A finished run.
        runs: Folders of all runs, in their order.
        scores: Result folder of `eval.run`.
        out: Folder to make; an older one is replaced.

    Raises:
        CheckpointError: A file is missing or broken.
    """
    with stage_folders(out.parent, [Path(out.name)]) as staging:
        folder = staging / out.name
        folder.mkdir()
        try:
            for name in _COPIED:
                shutil.copyfile(checkpoint / name, folder / name)
            summaries = [RunSummary.read(run) for run in runs]
            (folder / "training_log.csv").write_text(write_log(runs), encoding="utf-8")
            (folder / "README.md").write_text(write_card(summaries, read_scores(scores)), encoding="utf-8")
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"cannot publish {checkpoint} ({error!r}); expected runs and scores of scripts/pretrain_tiny.sh"
            ) from error
        for source in sorted(path for path in checkpoint.glob("*.py") if (CODE / path.name).is_file()):
            (folder / source.name).symlink_to(os.path.relpath(CODE / source.name, out.resolve()))


def write_log(runs: Sequence[Path]) -> str:
    """The reports of all runs as csv, a line each."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_LOG_COLUMNS)
    for number, run in enumerate(runs, start=1):
        history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        rows.writerows(
            [number, *(f"{report[name]:.5g}" for name in _LOG_COLUMNS[1:])] for report in history if "loss" in report
        )
    return text.getvalue()


def read_scores(folder: Path) -> dict[str, Estimate]:
    """Scores by task.

    Raises:
        KeyError: A task is missing.
    """
    found = {}
    for path in folder.rglob("scores.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["task"] in _TASKS:
            numbers = content["results"][content["protocol"]]
            found[content["task"]] = read_estimate(numbers)
    return {task: found[task] for task in _TASKS}


def write_card(summaries: Sequence[RunSummary], scores: Mapping[str, Estimate]) -> str:
    """The model card."""
    rows = (_write_row(text, task, scores[task]) for task, text in _TASKS.items())
    steps = " + ".join(f"{summary.steps:,}" for summary in summaries)
    samples = sum(int(summary.samples) for summary in summaries)
    tokens = sum(int(summary.tokens) for summary in summaries)
    minutes = sum(summary.seconds for summary in summaries) / 60
    return f"""# InternVL2-Tiny

A model of 324,096 parameters in the format of InternVL2 checkpoints, trained on short contexts with ordinary positions
on a CPU. `make demo` starts from it; `studies/miniature/run.sh` makes one per seed. It knows nothing but this:

| question | score, 95 % interval | questions |
|---|---|---|
{chr(10).join(rows)}

Contexts are photographs, sentences and needles of `internvl.synth.miniature`, about 190 tokens long; charts are
those of `internvl.synth.miniature.charts`. Digits, photographs, sentences and charts of the test were not trained on.
Chance is about 0.1.
Longer contexts are where ordinary positions fail: docs/reproduction.md.

    python -m internvl.infer.chat --checkpoint pretrained/InternVL2-Tiny --image chart.png \\
        "Which bar is highest? Answer the question using a single word or phrase."

Bars are red, blue, green, yellow, purple, black, pink or gray; a picture of 112 x 56 pixels is what it knows.

- tiles of 56 x 56 pixels, 4 visual tokens each, no thumbnail; vision tower and decoder of two layers of width 64
- tokenizer: sentencepiece BPE, 896 tokens, conventions of InternLM2
- questions are followed by the sentence above, on the same line for charts, on the next one for contexts
- made by `PUBLISH=1 sh scripts/pretrain_tiny.sh` ({date.today().isoformat()}, seed 0): {steps} steps,
  {samples:,} samples, {tokens:,} tokens, {minutes:.1f} minutes of training; losses in `training_log.csv`
- the same command makes an equally good model on another machine, not the same bits: the tokenizer learns from the
  documentation of the Python that runs it
- the code files are links into `internvl/model`; copy the folder with `cp -rL`
"""


def _write_row(text: str, task: str, found: Estimate) -> str:
    return f"| {text} | {found.score:.3f} {format_interval(found.interval)} | {found.count} (`{task}`) |"


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = CommandParser(
        prog="python -m internvl.tools.publish_tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="finished run")
    add("--runs", type=Path, nargs="+", required=True, metavar="RUN", help="all runs that led to it, in their order")
    add("--scores", type=Path, required=True, help="result folder of eval.run")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)")
    arguments = parser.parse_args(argv)
    publish(arguments.checkpoint, arguments.runs, arguments.scores, arguments.out)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
