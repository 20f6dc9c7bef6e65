"""`python -m eval.score DIR...`: make scores, plots and summaries again from saved predictions; needs no model."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.plots import write_task_plots
from eval.core.report import format_table, tabulate
from eval.core.scoring import check_length_edges, write_scores
from eval.core.store import read_merged, read_settings
from eval.options import add_scoring_arguments
from eval.summary import write_summary
from eval.tasks.registry import find_task
from internvl.errors import EvalError, InternVLError


def score_folder(folder: Path, *, protocol: str | None, length_edges: Sequence[int] | None) -> dict[str, Any]:
    """Score the predictions of one task and write scores.json and plots beside them.

    Raises:
        EvalError: Predictions or settings are missing or broken.
    """
    saved = read_settings(folder)
    settings = saved["settings"]
    task = find_task(settings["task"], prompts=settings.get("prompts", "upstream"))
    scores = write_scores(
        folder,
        task,
        read_merged(folder),
        settings=settings,
        info=saved.get("info", {}),
        protocol=protocol,
        length_edges=length_edges,
    )
    write_task_plots(folder, scores)
    return scores


def score_run(folder: Path, *, protocol: str | None, length_edges: Sequence[int] | None) -> list[dict[str, Any]]:
    """Score every task below a result folder and write its summary.

    Raises:
        EvalError: There are no finished predictions.
    """
    tasks = sorted(path.parent for path in folder.rglob("predictions.jsonl"))
    if not tasks:
        raise EvalError(f"{folder} holds no predictions.jsonl; expected a result folder of eval.run")
    results = [score_folder(task, protocol=protocol, length_edges=length_edges) for task in tasks]
    write_summary(folder, results)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m eval.score", description=__doc__)
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
    print(format_table(tabulate(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
