"""The report page: what `templates/report.html.j2` shows of results, comparisons and questions.

The first questions of a task are part of the page. The others are text in it, which the page's script turns into
elements as a reader reaches them: a browser cannot lay out 20,000 questions at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from eval.core.baselines import Baselines
from eval.core.result import Scores, TaskResult
from eval.metrics.estimate import Estimate
from eval.report.answers import group_by_task
from eval.report.gallery import STATES, Card
from eval.report.pairs import Pair
from eval.report.plots import draw_heatmap, draw_length_plot, draw_stride_plot
from eval.report.published import Comparison
from eval.report.rendering import embed, render, render_cards
from eval.report.rows import Row, group_rows, order_lengths, tabulate
from eval.report.tables import list_average_names
from eval.tasks.own import CONTENT

NUM_FIRST = 10  # questions of a task that need no script


class ConstantAnswer(NamedTuple):
    """The best of the answers that are given without looking."""

    response: str
    estimate: Estimate


@dataclass(frozen=True)
class NamedResult:
    """One result and the name of its run."""

    name: str
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
    def best_constant(self) -> ConstantAnswer | None:
        """The constant answer with the highest score; None where no answer is public."""
        baselines = self.result.headline.baselines
        return None if baselines is None else max(_list_constants(baselines), key=lambda found: found.estimate.score)

    @property
    def facts(self) -> dict[str, str]:
        """Everything that is known about how the result was made."""
        result, baselines = self.result, self.result.headline.baselines
        constants = {} if baselines is None else {
            f"constant answer {found.response or '(nothing)'}": f"{found.estimate.score:.3f}"
            for found in _list_constants(baselines)
        }  # fmt: skip
        made = {"source": result.source, "version of the task": result.version, "folder": result.folder}
        info = {name: value for name, value in result.info.items() if name != CONTENT}  # its file is among them
        parts = ({**made, **result.settings.values}, info, {"judge": result.content.get("judge")}, constants)
        return dict(fact for part in parts for fact in _list_facts(part))


@dataclass(frozen=True)
class TaskSection:
    """What the page shows of one task."""

    name: str
    anchor: str  # where links to the section lead
    runs: Sequence[NamedResult]
    figures: Sequence[Markup]
    lengths: Sequence[str]  # columns of the table of context lengths
    lines: Mapping[tuple[str, str, str], Mapping[str, Row]]  # lines of that table; empty where the task has no lengths
    num_questions: int  # questions of the largest run
    cards: Sequence[Card]  # questions to look at

    @property
    def first_cards(self) -> Sequence[Card]:
        """Questions that are shown as they are."""
        return self.cards[:NUM_FIRST]

    @property
    def more_cards(self) -> Markup:
        """The others, as a JSON list of elements in HTML."""
        return render_cards(self.cards[NUM_FIRST:])


def render_page(
    results: Sequence[TaskResult],
    names: Sequence[str],
    *,
    title: str,
    comparisons: Sequence[Comparison] = (),
    pairs: Sequence[Pair] = (),
    averages: Mapping[str, Mapping[str, Estimate]] | None = None,
    cards: Mapping[str, Sequence[Card]] | None = None,
) -> str:
    """The whole page of `results`, whose runs are called `names`.

    `comparisons` are tables beside published rows; those without an own row are left out. `pairs`: runs against the
    first one. `averages`: run -> name of a mean over several tasks -> the mean. `cards`: task -> questions to look at.
    """
    averages, cards = averages or {}, cards or {}
    tasks = [
        _build_section(task, f"task-{number}", runs, cards.get(task, ()))
        for number, (task, runs) in enumerate(group_by_task(results, names).items())
    ]
    shown = [card for members in cards.values() for card in members]
    lengths = dict.fromkeys(length for task in tasks for length in task.lengths)
    return render(
        "report.html.j2",
        title=title,
        with_script=bool(shown),
        description=_describe(results, names),
        comparisons=[table for table in comparisons if table.has_own_rows],
        pairs=_group_pairs(pairs),
        reference=pairs[0].reference if pairs else "",
        averages=averages,
        average_names=list_average_names(averages),
        tasks=tasks,
        states=[state for state in STATES if any(state in card.states for card in shown)],
        card_lengths=[length for length in lengths if any(card.length == length for card in shown)],
        card_depths=sorted({card.depth for card in shown} - {""}),
    )


def _group_pairs(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by run."""
    return {run: [pair for pair in pairs if pair.run == run] for run in dict.fromkeys(pair.run for pair in pairs)}


def _describe(results: Sequence[TaskResult], names: Sequence[str]) -> str:
    num_tasks, runs = len({result.task for result in results}), dict.fromkeys(names)
    num_answers = sum(result.headline.count for result in results)
    return f"{num_tasks} tasks, {len(runs)} runs ({'; '.join(runs)}), {num_answers:,} answers"


def _format_score(scores: Scores) -> str:
    estimate = scores.estimate
    if scores.needs_judge:
        return "needs a judge"
    return "no public answers" if estimate is None else f"{estimate.score:.3f}"


def _list_facts(facts: Mapping[str, object], lead: str = "") -> Iterator[tuple[str, str]]:
    """Facts as texts; those of an object inside are named after both: `judge: model`. None is left out."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _list_facts(value, f"{lead}{name}: ")
        elif isinstance(value, (list, tuple)):
            yield f"{lead}{name}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{lead}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _list_constants(baselines: Baselines) -> Iterator[ConstantAnswer]:
    answers = [("", baselines.empty), (baselines.letter.response, baselines.letter.score)]
    if baselines.majority is not None:
        answers.append((baselines.majority.response, baselines.majority.score))
    for response, score in answers:
        yield ConstantAnswer(response, Estimate(score, 0.0, baselines.count))


def _build_section(name: str, anchor: str, members: Mapping[str, TaskResult], cards: Sequence[Card]) -> TaskSection:
    runs = [NamedResult(run, result) for run, result in members.items()]
    has_lengths = any(len(result.headline.by_length) > 1 for result in members.values())
    rows = tabulate(list(members.values()), list(members)) if has_lengths else []
    return TaskSection(
        name=name,
        anchor=anchor,
        runs=runs,
        figures=[*_draw_lengths(runs), *_draw_strides(runs), *_draw_heatmaps(runs)],
        lengths=order_lengths(rows),
        lines=group_rows(rows),
        num_questions=max(result.headline.count for result in members.values()),
        cards=cards,
    )


def _draw_lengths(runs: Sequence[NamedResult]) -> Iterator[Markup]:
    series = {run.name: bins for run in runs if (bins := run.result.headline.by_length)}
    if any(len(bins) > 1 for bins in series.values()):
        yield embed(draw_length_plot(series, title="by context length"))


def _draw_heatmaps(runs: Sequence[NamedResult]) -> Iterator[Markup]:
    for run in runs:
        grid = run.result.headline.by_depth_and_length
        if grid is not None:
            yield embed(draw_heatmap(grid, title=f"by length and depth: {run.name}"))


def _draw_strides(runs: Sequence[NamedResult]) -> Iterator[Markup]:
    """A plot over strides for every checkpoint that was evaluated with two or more."""
    for name, members in _group_sweeps(runs).items():
        series: dict[str, list[tuple[float, float, int]]] = {}
        without_stride: dict[str, float] = {}
        for run in members:
            score, stride = run.result.headline.score, run.result.settings.rope_pos_id_stride
            if score is None:
                continue
            if stride is None:
                without_stride[run.name] = score
                continue
            for row in tabulate([run.result], [run.name]):
                if row.accuracy is not None:
                    series.setdefault(row.length, []).append((stride, row.accuracy, row.count))
        if any(len({stride for stride, _, _ in points}) > 1 for points in series.values()):
            yield embed(draw_stride_plot(series, title=f"by stride{name}", without_stride=without_stride))


def _group_sweeps(runs: Sequence[NamedResult]) -> dict[str, list[NamedResult]]:
    """Results that differ only in their positions, by what tells the group from others, to be put after a title."""
    groups: dict[str, list[NamedResult]] = {}
    for run in runs:
        shared = {k: v for k, v in run.result.settings.values.items() if not k.startswith("rope_pos_id_")}
        groups.setdefault(repr(sorted(shared.items(), key=str)), []).append(run)
    if len(groups) == 1:
        return {"": next(iter(groups.values()))}
    return {f", as {members[0].name}": members for members in groups.values()}
