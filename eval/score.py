"""`python -m eval.score DIR...`: makes scores, plots and summaries again from saved predictions, without the model.

    DIR/.../RUN/GROUP/TASK/predictions.jsonl  -->  scores.json and plots beside it, RUN/summary.json

A DIR may hold several runs, such as a checkpoint's folder with one evaluation per stride. Each gets its own summary.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.core.predictions import PredictionStore, make_fingerprint
from eval.core.result import (
    PREDICTIONS_NAME,
    SETTINGS_NAME,
    SavedSettings,
    TaskResult,
    find_run_folder,
    name_first,
    read_predictions,
    read_settings,
)
from eval.core.sample import Prediction
from eval.core.scoring import check_length_edges, write_scores
from eval.report.overview import format_results
from eval.report.plots import write_task_plots
from eval.report.summary import write_summary
from eval.run.judging import NO_JUDGE, JudgeOptions, judge_predictions
from eval.run.options import add_scoring_arguments
from eval.tasks.registry import find_saved_task
from internvl.command import command
from internvl.data.natural_order import natural_key
from internvl.errors import EvalError
from internvl.folder_owner import own_folder
from internvl.infer.flags import from_arguments
from internvl.parser import CommandParser

logger = logging.getLogger(__name__)

# Settings that all tasks of one run share.
RUN_SETTINGS = (
    *("checkpoint", "rope_pos_id_version", "rope_pos_id_stride", "rope_scaling", "logn_scaling"),
    *("dtype", "kv_cache", "ablate"),
)


def score_folder(
    folder: Path,
    *,
    protocol: str | None,
    length_edges: Sequence[int] | None,
    allow_missing: bool = False,
    judging: JudgeOptions = NO_JUDGE,
) -> TaskResult:
    """Score the predictions of one task and write scores.json and plots beside them.

    Without `length_edges` the run's own count. Raises EvalError if predictions or settings are missing, broken or do
    not belong together, or (unless `allow_missing`) answers are missing; ConfigError for an unknown task or protocol.
    """
    saved = _read_named_settings(folder)
    settings = saved.settings
    task = find_saved_task(settings, saved.info)
    if settings.task_version not in (None, task.version):
        logger.warning(
            "%s holds predictions of version %s of %s, which is at version %s now: prompts or decoding differ",
            folder, settings.task_version, task.name, task.version,
        )  # fmt: skip
    predictions = read_checked_predictions(folder, saved)
    _check_number(folder, predictions, saved, allow_missing=allow_missing)
    judged, judge = judge_predictions(task, predictions, folder, judging)
    result = write_scores(
        folder,
        task,
        judged,
        settings=settings.values,
        info=saved.info,
        protocol=protocol,
        length_edges=saved.length_bins if length_edges is None else length_edges,
        judge=judge,
    )
    write_task_plots(folder, result)
    return result


def _check_number(
    folder: Path, predictions: Sequence[Prediction], saved: SavedSettings, *, allow_missing: bool
) -> None:
    found, expected = len(predictions), saved.num_samples
    if expected is None or found >= expected:
        return
    # The files of the ranks still know the questions that are gone from predictions.jsonl.
    answered = PredictionStore(folder, saved.settings.values).read()
    missing = [repr(name) for name in answered.keys() - {prediction.id for prediction in predictions}]
    names = f" (of the samples {name_first(sorted(missing, key=natural_key))})" if missing else ""
    message = f"{folder}: {expected - found} of {expected} answers are missing{names}"
    if not allow_missing:
        raise EvalError(
            f"{message}; start the same eval.run command again, or pass --allow_missing to score the {found} that are "
            "there"
        )
    logger.warning("%s and are left out of the score", message)


def read_checked_predictions(folder: Path, saved: SavedSettings) -> list[Prediction]:
    """A task's finished predictions, once it is certain that they were made with its settings.

    Raises EvalError if the file is missing, cut off or broken, holds an id twice, or was made with other settings.
    """
    if saved.fingerprint != make_fingerprint(saved.settings.values):
        raise EvalError(
            f"{folder / SETTINGS_NAME}: settings and fingerprint do not belong together; the file was changed after "
            "the evaluation, so nobody can say what the predictions were made with"
        )
    PredictionStore(folder, saved.settings.values).read()  # refuses parts that were made with other settings
    return read_predictions(folder)


def score_run(
    folder: Path,
    *,
    protocol: str | None,
    length_edges: Sequence[int] | None,
    allow_missing: bool = False,
    judging: JudgeOptions = NO_JUDGE,
) -> list[TaskResult]:
    """Score every task below a result folder and write the summary of every whole run in it.

    Raises EvalError without finished predictions, or if tasks of one run were made with different settings.
    """
    tasks = sorted(path.parent for path in folder.rglob(PREDICTIONS_NAME))
    if not tasks:
        raise EvalError(f"{folder} holds no {PREDICTIONS_NAME}; expected a result folder of eval.run")
    unfinished = {path.parent.parent for path in folder.rglob("parts/*.jsonl")} - set(tasks)
    for task in sorted(unfinished):
        logger.warning("%s is not finished and not scored; start the same eval.run command again", task)
    runs: dict[Path, list[Path]] = {}
    for task in tasks:
        runs.setdefault(find_run_folder(task, _read_named_settings(task).settings.task), []).append(task)
    for run, members in runs.items():
        check_one_setting(run, members)
    results = []
    for run, members in runs.items():
        with own_folder(run, "eval.score"):
            scored = [
                score_folder(
                    task,
                    protocol=protocol,
                    length_edges=length_edges,
                    allow_missing=allow_missing,
                    judging=judging,
                )
                for task in members
            ]
            if run.resolve().is_relative_to(folder.resolve()):
                write_summary(run, scored)
        results += scored
    return results


def check_one_setting(run: Path, folders: Sequence[Path]) -> None:
    """Refuse a result folder whose tasks were evaluated with different checkpoints or positions.

    Raises EvalError that names the difference and the tasks.
    """
    settings = [read_settings(folder).settings for folder in folders]
    for name in RUN_SETTINGS:
        values: dict[str, list[str]] = {}
        for entry in settings:
            values.setdefault(repr(entry.values.get(name)), []).append(entry.task)
        if len(values) > 1:
            found = "; ".join(f"{value} in {', '.join(tasks)}" for value, tasks in values.items())
            raise EvalError(
                f"{run} mixes evaluations with different settings, {name} is {found}; move the task folders of each "
                "into a folder of its own"
            )


def _read_named_settings(folder: Path) -> SavedSettings:
    saved = read_settings(folder)
    if not saved.settings.task:
        raise EvalError(f"{folder / SETTINGS_NAME} names no task, got {saved.settings.values.get('task')!r}")
    return saved


@command(go_on="start the same command again; answers are kept")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    parser = CommandParser(
        prog="python -m eval.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="result folders of eval.run")
    add_scoring_arguments(parser)
    parser.add_argument("--allow_missing", action="store_true", help="score the answers that are there")
    args = parser.parse_args(argv)
    if args.length_bins is not None:
        check_length_edges(args.length_bins)
    judging = from_arguments(JudgeOptions, args)
    judging.check()
    results = [
        result
        for folder in args.folders
        for result in score_run(
            folder,
            protocol=args.protocol,
            length_edges=args.length_bins,
            allow_missing=args.allow_missing,
            judging=judging,
        )
    ]
    print(format_results(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
