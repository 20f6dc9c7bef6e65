"""`python -m eval.score DIR...`: make scores, plots and summaries again from saved predictions; needs no model.

    DIR/.../RUN/GROUP/TASK/predictions.jsonl  -->  scores.json and plots beside it, RUN/summary.json

A DIR may hold several runs, such as a checkpoint's folder with an evaluation per stride; each gets its own summary.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.predictions import PredictionStore, make_fingerprint, read_merged, read_settings
from eval.core.sample import Prediction
from eval.core.scoring import check_length_edges, write_scores
from eval.report.overview import format_results
from eval.report.plots import write_task_plots
from eval.report.summary import write_summary
from eval.run.options import add_scoring_arguments
from eval.tasks.registry import find_task
from internvl.errors import EvalError, InternVLError

logger = logging.getLogger(__name__)

# What all tasks of one run share.
RUN_SETTINGS = (
    *("checkpoint", "rope_pos_id_version", "rope_pos_id_stride", "rope_scaling", "logn_scaling"),
    *("dtype", "kv_cache"),
)


def score_folder(folder: Path, *, protocol: str | None, length_edges: Sequence[int] | None) -> dict[str, Any]:
    """Score the predictions of one task and write scores.json and plots beside them.

    Raises:
        EvalError: Predictions or settings are missing, broken, or do not belong together.
        ConfigError: There is no such task or protocol.
    """
    saved = read_settings(folder)
    settings = saved["settings"]
    task = find_task(_read_name(folder, settings), prompts=settings.get("prompts", "upstream"))
    version = settings.get("task_version", task.version)
    if version != task.version:
        logger.warning(
            "%s holds predictions of version %s of %s, which is at version %s now: prompts or decoding differ",
            folder, version, task.name, task.version,
        )  # fmt: skip
    scores = write_scores(
        folder,
        task,
        read_predictions(folder, saved),
        settings=settings,
        info=saved.get("info", {}),
        protocol=protocol,
        length_edges=length_edges,
    )
    write_task_plots(folder, scores)
    return scores


def read_predictions(folder: Path, saved: Mapping[str, Any]) -> list[Prediction]:
    """The finished predictions of a task folder, checked against its settings.

    Args:
        folder: Result folder of the task.
        saved: Content of its settings.json.

    Raises:
        EvalError: The file is missing, cut or broken, holds an id twice, or was made with other settings.
    """
    if saved.get("fingerprint") != make_fingerprint(saved["settings"]):
        raise EvalError(
            f"{folder / 'settings.json'}: settings and fingerprint do not belong together; the file was changed after "
            "the evaluation, so nobody can say what the predictions were made with"
        )
    PredictionStore(folder, saved["settings"]).read()  # refuses parts that were made with other settings
    predictions = read_merged(folder)
    seen: set[str] = set()
    for prediction in predictions:
        if prediction.id in seen:
            raise EvalError(
                f"{folder / 'predictions.jsonl'} holds sample {prediction.id!r} twice; delete one of the lines"
            )
        seen.add(prediction.id)
    return predictions


def score_run(folder: Path, *, protocol: str | None, length_edges: Sequence[int] | None) -> list[dict[str, Any]]:
    """Score every task below a result folder and write the summary of every whole run in it.

    Raises:
        EvalError: There are no finished predictions, or tasks of one run were made with different settings.
    """
    tasks = sorted(path.parent for path in folder.rglob("predictions.jsonl"))
    if not tasks:
        raise EvalError(f"{folder} holds no predictions.jsonl; expected a result folder of eval.run")
    unfinished = {path.parent.parent for path in folder.rglob("parts/*.jsonl")} - set(tasks)
    for task in sorted(unfinished):
        logger.warning("%s is not finished and not scored; start the same eval.run command again", task)
    runs: dict[Path, list[Path]] = {}
    for task in tasks:
        runs.setdefault(find_run(task), []).append(task)
    for run, members in runs.items():
        check_one_setting(run, members)
    results = []
    for run, members in runs.items():
        scored = [score_folder(task, protocol=protocol, length_edges=length_edges) for task in members]
        if run.resolve().is_relative_to(folder.resolve()):
            write_summary(run, scored)
        results += scored
    return results


def find_run(folder: Path) -> Path:
    """The result folder of the run that a task folder `RUN/GROUP/TASK` belongs to; itself where it was moved."""
    name = Path(_read_name(folder, read_settings(folder)["settings"]))
    folder = folder.resolve()
    is_in_place = folder.parts[-len(name.parts) :] == name.parts
    return folder.parents[len(name.parts) - 1] if is_in_place else folder


def check_one_setting(run: Path, folders: Sequence[Path]) -> None:
    """Refuse a result folder whose tasks were evaluated with different checkpoints or positions.

    Raises:
        EvalError: Names the difference and the tasks.
    """
    settings = {folder: read_settings(folder)["settings"] for folder in folders}
    for name in RUN_SETTINGS:
        values: dict[str, list[str]] = {}
        for entry in settings.values():
            values.setdefault(repr(entry.get(name)), []).append(str(entry.get("task")))
        if len(values) > 1:
            found = "; ".join(f"{value} in {', '.join(tasks)}" for value, tasks in values.items())
            raise EvalError(
                f"{run} mixes evaluations with different settings, {name} is {found}; move the task folders of each "
                "into a folder of its own"
            )


def _read_name(folder: Path, settings: Mapping[str, Any]) -> str:
    name = settings.get("task")
    if not isinstance(name, str):
        raise EvalError(f"{folder / 'settings.json'} names no task, got {name!r}")
    return name


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(
        prog="python -m eval.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="result folders of eval.run")
    add_scoring_arguments(parser)
    args = parser.parse_args(argv)
    try:
        if args.length_bins is not None:
            check_length_edges(args.length_bins)
        results = [
            result
            for folder in args.folders
            for result in score_run(folder, protocol=args.protocol, length_edges=args.length_bins)
        ]
    except InternVLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_results(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
