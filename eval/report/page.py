"""One self-contained HTML page for results: tables, plots and questions; nothing is loaded from elsewhere.

Whatever comes from data or a model is escaped, and a content security policy lets the page's own script run and no
other: a response `<script>` is text, twice over. Without the script everything is shown, only the filter is missing.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.metrics.estimate import Estimate
from eval.report.card_page import render_card, render_filter
from eval.report.gallery import Card
from eval.report.plots import draw_heatmap, draw_length_plot, draw_stride_plot, encode_svg
from eval.report.tables import (
    ALL_LENGTHS,
    ComparedRow,
    Comparison,
    format_chance,
    group_rows,
    label_runs,
    label_settings,
    list_average_names,
    order_lengths,
    tabulate,
)
from eval.report.theme import SCRIPT, STYLE, make_policy


def render_page(
    results: Sequence[Mapping[str, Any]],
    *,
    title: str,
    comparisons: Sequence[Comparison] = (),
    averages: Mapping[str, Mapping[str, Estimate]] | None = None,
    cards: Mapping[str, Sequence[Card]] | None = None,
) -> str:
    """The whole page.

    Args:
        results: Contents of scores.json files.
        title: Heading.
        comparisons: Tables of own runs beside published rows; those without an own row are left out.
        averages: Run -> name of a mean over several tasks -> the mean.
        cards: Task -> questions to look at.
    """
    cards = cards or {}
    labels = label_settings(results)
    tasks = list(dict.fromkeys(result["task"] for result in results))
    tables = [_render_comparison(table) for table in comparisons if any(row.is_own for row in table.rows)]
    sections = [
        _render_task(
            index,
            task,
            [(label, r) for label, r in zip(labels, results, strict=True) if r["task"] == task],
            cards.get(task, ()),
        )
        for index, task in enumerate(tasks)
    ]
    has_cards = any(cards.values())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{make_policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"<p class=dim>{_describe(results)}</p>\n"
        f"{''.join(tables)}\n<h2>All tasks</h2>\n"
        "<p class=dim>Score with standard error. <em>Blind</em> columns are what answers get that do not look at the "
        "question, by the same rule: nothing, the best single letter, the most common gold answer. Chance is the score "
        f"of guessing. A failed question counts as wrong.</p>\n{_render_tasks(results)}\n"
        f"{_render_averages(averages or {})}\n"
        f"{render_filter() if has_cards else ''}\n{''.join(sections)}\n"
        f"{f'<script>{SCRIPT}</script>' if has_cards else ''}</body></html>\n"
    )


def _describe(results: Sequence[Mapping[str, Any]]) -> str:
    num_tasks, runs = len({result["task"] for result in results}), dict.fromkeys(label_runs(results))
    questions = sum(result["results"][result["protocol"]]["count"] for result in results)
    text = f"{num_tasks} tasks, {len(runs)} runs ({'; '.join(runs)}), {questions:,} answers"
    return escape(text)


def _render_comparison(table: Comparison) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("model", "", *table.columns))
    rows = "".join(_render_compared(row, table.columns) for row in table.rows)
    sources = sorted({row.source for row in table.rows if row.source and not row.is_own})
    notes = [*table.notes, *(f"{row.name}: {row.note}." for row in table.rows if row.note)]
    notes += [f"Published rows: {source}" for source in sources]
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<h2>{escape(table.title)}</h2><div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        f"</table></div><ul class=notes>{listed}</ul>"
    )


def _render_compared(row: ComparedRow, columns: Sequence[str]) -> str:
    cells = []
    for column in columns:
        value, stderr = row.cells.get(column, (None, None))
        if value is None:
            cells.append("<td class=dim>-</td>")
        else:
            cells.append(f"<td>{value:.1f}{'' if stderr is None else f' <small>±{stderr:.1f}</small>'}</td>")
    kind = '<tr class="own">' if row.is_own else "<tr>"
    return (
        f"{kind}<td class=name>{escape(row.name)}</td><td><small>{escape(row.kind)}</small></td>{''.join(cells)}</tr>"
    )


def _render_tasks(results: Sequence[Mapping[str, Any]]) -> str:
    names = (
        *("task", "positions", "rule", "score", "other rules", "questions", "failed", "empty"),
        *("blind: nothing", "blind: letter", "blind: majority", "chance", "version"),
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    by_task: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for result, label in zip(results, label_settings(results), strict=True):
        by_task.setdefault(result["task"], []).append((label, result))
    rows = []
    for index, (task, members) in enumerate(by_task.items()):
        link = f'<td class="name" rowspan="{len(members)}"><a href="#task-{index}">{escape(task)}</a></td>'
        rows += [
            f"<tr>{'' if place else link}{_render_result(label, result)}</tr>"
            for place, (label, result) in enumerate(members)
        ]
    table = f'<table class="tasks"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f"<div class=wide>{table}</div>"


def _render_averages(averages: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A line per mean, a column per run; nothing where there is none."""
    names = list_average_names(averages)
    if not names:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in ("mean", *averages))
    rows = []
    for name in names:
        cells = "".join(_render_average(numbers.get(name)) for numbers in averages.values())
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<details><summary>Averages over several tasks</summary><div class=wide>{table}</div></details>"


def _render_average(estimate: Estimate | None) -> str:
    if estimate is None:
        return "<td class=dim>-</td>"
    return f"<td>{estimate.score:.3f} <small>±{estimate.stderr:.3f}, n {estimate.count}</small></td>"


def _render_result(label: str, result: Mapping[str, Any]) -> str:
    numbers = result["results"][result["protocol"]]
    others = "; ".join(
        f"{name} {'same' if entry['score'] == numbers['score'] else _format_score(entry)}"
        for name, entry in result["results"].items()
        if name != result["protocol"]
    )
    cells = [
        f"<td class=left>{escape(label)}</td>",
        f"<td class=left>{escape(result['protocol'])}</td><td>{_render_score(numbers)}</td>",
        f"<td><small>{escape(others)}</small></td>",
        *(f"<td>{numbers[key]:,}</td>" for key in ("count", "num_failed", "num_empty")),
        *(f"<td>{text}</td>" for text in _format_floors(numbers.get("floors"))),
        f"<td>{format_chance(numbers['chance'])}</td><td>{escape(str(result.get('version', '?')))}</td>",
    ]
    return "".join(cells)


def _render_score(entry: Mapping[str, Any]) -> str:
    if entry["score"] is None:
        return "no public answers"
    share = 100 * min(1.0, max(0.0, entry["score"]))
    bar = f'<i class="bar"><b style="width:{share:.0f}%"></b></i>'
    return f"{entry['score']:.3f} <small>±{entry['stderr']:.3f}</small>{bar}"


def _format_score(entry: Mapping[str, Any]) -> str:
    return "no public answers" if entry["score"] is None else f"{entry['score']:.3f} ±{entry['stderr']:.3f}"


def _format_floors(floors: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if not floors:
        return "-", "-", "-"
    named = (floors["letter"], floors["majority"])
    texts = [
        "-" if entry is None else f"{entry['score']:.3f} <small>{escape(_shorten(entry['response']))}</small>"
        for entry in named
    ]
    return f"{floors['empty']:.3f}", texts[0], texts[1]


def _shorten(text: str) -> str:
    return text if len(text) <= 16 else text[:15] + "…"


def _render_task(index: int, task: str, results: Sequence[tuple[str, Mapping[str, Any]]], cards: Sequence[Card]) -> str:
    numbers = [(label, result["results"][result["protocol"]]) for label, result in results]
    series = {label: entry["by_length"] for label, entry in numbers if entry.get("by_length")}
    parts = [f'<h2 id="task-{index}"><code>{escape(task)}</code></h2>']
    if series:
        parts.append(_embed(encode_svg(draw_length_plot(series, title=f"{task}: by context length"))))
    parts.append(_render_strides(task, results))
    for label, entry in numbers:
        if "by_depth_and_length" in entry:
            plot = draw_heatmap(entry["by_depth_and_length"], title=f"{task}, {label}")
            parts.append(_embed(encode_svg(plot)))
    if series:
        parts.append(_render_lengths(tabulate([result for _, result in results])))
    parts += [_render_details(label, result) for label, result in results]
    if cards:
        total = max(entry["count"] for _, entry in numbers)
        parts.append(f"<h3>{len(cards)} of {total:,} questions</h3>{''.join(map(render_card, cards))}")
    return f"<section>{''.join(parts)}</section>\n"


def _render_strides(task: str, results: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A plot over strides, for every checkpoint that was evaluated with two or more."""
    plots = []
    for name, members in _group_sweeps(results).items():
        series: dict[str, list[tuple[float, float, int]]] = {}
        baselines: dict[str, float] = {}
        for label, result in members:
            numbers = result["results"][result["protocol"]]
            stride = result["settings"].get("rope_pos_id_stride")
            if numbers["score"] is None:
                continue
            if stride is None:
                baselines[label] = numbers["score"]
                continue
            for row in tabulate([result]):
                series.setdefault(row["length"], []).append((stride, row["accuracy"], row["count"]))
        if any(len({stride for stride, _, _ in rows}) > 1 for rows in series.values()):
            title = f"{task}: by stride" + (f", {name}" if name else "")
            plots.append(_embed(encode_svg(draw_stride_plot(series, title=title, baselines=baselines))))
    return "".join(plots)


def _group_sweeps(
    results: Sequence[tuple[str, Mapping[str, Any]]],
) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Results that differ in their positions alone, by what they share (nothing to name where there is one group)."""
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, result in results:
        shared = {k: v for k, v in result["settings"].items() if not k.startswith("rope_pos_id_")}
        groups.setdefault(repr(sorted(shared.items(), key=str)), []).append((label, result))
    if len(groups) == 1:
        return {"": next(iter(groups.values()))}
    return {f"group {number}": members for number, members in enumerate(groups.values(), start=1)}


def _render_lengths(rows: Sequence[Mapping[str, Any]]) -> str:
    lengths = order_lengths(rows)
    head = "".join(f"<th>{escape(text)}</th>" for text in ("positions", *lengths, "chance"))
    body = []
    for (_, setting, _), cells in group_rows(rows).items():
        texts = [f"<td class=name>{escape(setting)}</td>", *(_render_cell(cells.get(length)) for length in lengths)]
        body.append(f"<tr>{''.join(texts)}<td>{format_chance(cells[ALL_LENGTHS]['chance'])}</td></tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _render_cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return "<td class=dim>-</td>"
    return f"<td>{row['accuracy']:.3f} <small>±{row['stderr']:.3f}, n {row['count']}</small></td>"


def _render_details(label: str, result: Mapping[str, Any]) -> str:
    facts = {"source": result["source"], **result["settings"], **result["info"], "folder": result.get("folder", "?")}
    lines = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return f"<details><summary>{escape(label)}: settings</summary><dl>{lines}</dl></details>"


def _embed(svg: str) -> str:
    return f"<figure>{svg}</figure>"
