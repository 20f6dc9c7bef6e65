"""The report page: what `templates/report.html.j2` shows of results, comparisons and questions.

Without JavaScript everything is shown; only the filter of questions is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eval.core.result import Scores, TaskResult
from eval.metrics.estimate import Estimate
from eval.report.gallery import Card
from eval.report.labels import label_runs, label_settings
from eval.report.plots import draw_heatmap, draw_length_plot, draw_stride_plot
from eval.report.published import Comparison
from eval.report.rendering import embed, render
from eval.report.rows import Row, group_rows, order_lengths, tabulate
from eval.report.tables import list_average_names


@dataclass(frozen=True)
class LabelledResult:
    """One result and what its run is called on the page."""

    label: str
    result: TaskResult

    @property
    def other_rules(self) -> str:
        """Scores under the rules that are not the headline's."""
        score = self.result.headline.score
        return "; ".join(
            f"{name} {'same' if scores.score == score else _format_score(scores)}"
            for name, scores in self.result.scores.items()
            if name != self.result.protocol
        )

    @property
    def facts(self) -> dict[str, object]:
        """Everything that is known about how the result was made."""
        result = self.result
        judge = {f"judge: {name}": value for name, value in result.content.get("judge", {}).items()}
        return {"source": result.source, **result.settings.values, **result.info, **judge, "folder": result.folder}


@dataclass(frozen=True)
class TaskSection:
    """What the page shows of one task."""

    name: str
    anchor: str  # where links to the section lead
    runs: Sequence[LabelledResult]
    figures: Sequence[Markup]
    lengths: Sequence[str]  # columns of the table of context lengths
    lines: Mapping[tuple[str, str, str], Mapping[str, Row]]  # lines of that table; empty where the task has no lengths
    num_questions: int  # questions of the largest run
    cards: Sequence[Card]  # questions to look at


def render_page(
    results: Sequence[TaskResult],
    *,
    title: str,
    comparisons: Sequence[Comparison] = (),
    averages: Mapping[str, Mapping[str, Estimate]] | None = None,
    cards: Mapping[str, Sequence[Card]] | None = None,
) -> str:
    """The whole page of `results`.

    `comparisons` are tables beside published rows; those without an own row are left out. `averages`: run -> name of a
    mean over several tasks -> the mean. `cards`: task -> questions to look at.
    """
    averages, cards = averages or {}, cards or {}
    by_task: dict[str, list[LabelledResult]] = {}
    for label, result in zip(label_settings(results), results, strict=True):
        by_task.setdefault(result.task, []).append(LabelledResult(label, result))
    return render(
        "report.html.j2",
        title=title,
        with_script=any(cards.values()),
        description=_describe(results),
        comparisons=[table for table in comparisons if table.has_own_rows],
        averages=averages,
        average_names=list_average_names(averages),
        tasks=[
            _build_section(task, f"task-{index}", runs, cards.get(task, ()))
            for index, (task, runs) in enumerate(by_task.items())
        ],
    )


def _describe(results: Sequence[TaskResult]) -> str:
    num_tasks, runs = len({result.task for result in results}), dict.fromkeys(label_runs(results))
    num_answers = sum(result.headline.count for result in results)
    return f"{num_tasks} tasks, {len(runs)} runs ({'; '.join(runs)}), {num_answers:,} answers"


def _format_score(scores: Scores) -> str:
    estimate = scores.estimate
    if scores.needs_judge:
        return "needs a judge"
    return "no public answers" if estimate is None else f"{estimate.score:.3f} ±{estimate.stderr:.3f}"


def _build_section(name: str, anchor: str, runs: Sequence[LabelledResult], cards: Sequence[Card]) -> TaskSection:
    has_lengths = any(run.result.headline.by_length for run in runs)
    rows = tabulate([run.result for run in runs]) if has_lengths else []
    return TaskSection(
        name=name,
        anchor=anchor,
        runs=runs,
        figures=[*_draw_lengths(name, runs), *_draw_strides(name, runs), *_draw_heatmaps(name, runs)],
        lengths=order_lengths(rows),
        lines=group_rows(rows),
        num_questions=max(run.result.headline.count for run in runs),
        cards=cards,
    )


def _draw_lengths(task: str, runs: Sequence[LabelledResult]) -> Iterator[Markup]:
    series = {run.label: bins for run in runs if (bins := run.result.headline.by_length)}
    if series:
        yield embed(draw_length_plot(series, title=f"{task}: by context length"))


def _draw_heatmaps(task: str, runs: Sequence[LabelledResult]) -> Iterator[Markup]:
    for run in runs:
        grid = run.result.headline.by_depth_and_length
        if grid is not None:
            yield embed(draw_heatmap(grid, title=f"{task}, {run.label}"))


def _draw_strides(task: str, runs: Sequence[LabelledResult]) -> Iterator[Markup]:
    """A plot over strides for every checkpoint that was evaluated with two or more."""
    for name, members in _group_sweeps(runs).items():
        series: dict[str, list[tuple[float, float, int]]] = {}
        without_stride: dict[str, float] = {}
        for run in members:
            score, stride = run.result.headline.score, run.result.settings.rope_pos_id_stride
            if score is None:
                continue
            if stride is None:
                without_stride[run.label] = score
                continue
            for row in tabulate([run.result]):
                if row.accuracy is not None:
                    series.setdefault(row.length, []).append((stride, row.accuracy, row.count))
        if any(len({stride for stride, _, _ in points}) > 1 for points in series.values()):
            title = f"{task}: by stride" + (f", {name}" if name else "")
            yield embed(draw_stride_plot(series, title=title, without_stride=without_stride))


def _group_sweeps(runs: Sequence[LabelledResult]) -> dict[str, list[LabelledResult]]:
    """Results that differ only in their positions, by name of the group; a single group needs no name."""
    groups: dict[str, list[LabelledResult]] = {}
    for run in runs:
        shared = {k: v for k, v in run.result.settings.values.items() if not k.startswith("rope_pos_id_")}
        groups.setdefault(repr(sorted(shared.items(), key=str)), []).append(run)
    if len(groups) == 1:
        return {"": next(iter(groups.values()))}
    return {f"group {number}": members for number, members in enumerate(groups.values(), start=1)}
