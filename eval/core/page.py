"""One self-contained HTML page for results: tables and plots, nothing is loaded from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.core.plots import draw_heatmap, draw_length_plot
from eval.core.report import ALL_LENGTHS, format_chance, group_rows, label_settings, order_lengths, tabulate

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; white-space: nowrap }
th { background: #f3f3f3 } small { color: #666 } figure { display: inline-block; margin: .5rem 1rem .5rem 0 }
img { max-width: 100% } dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
"""


def render_page(results: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The whole page.

    Args:
        results: Contents of scores.json files.
        title: Heading.
    """
    labels = label_settings(results)
    tasks = list(dict.fromkeys(result["task"] for result in results))
    sections = [
        _render_task(task, [(label, r) for label, r in zip(labels, results, strict=True) if r["task"] == task])
        for task in tasks
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        "<p>Accuracy with standard error and number of questions; chance is the score of guessing. Bands in plots are "
        "95 % intervals.</p>\n"
        f"{_render_table(tabulate(results))}\n{''.join(sections)}</body></html>\n"
    )


def _render_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lengths = order_lengths(rows)
    head = "".join(f"<th>{escape(text)}</th>" for text in ("task", "positions", "protocol", *lengths, "chance"))
    body = []
    for names, cells in group_rows(rows).items():
        texts = [f"<td>{escape(name)}</td>" for name in names]
        texts += [_render_cell(cells.get(length)) for length in lengths]
        texts.append(f"<td>{format_chance(cells[ALL_LENGTHS]['chance'])}</td>")
        body.append(f"<tr>{''.join(texts)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _render_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "<td>-</td>"
    if row["accuracy"] is None:
        return f"<td>no answers <small>n {row['count']}</small></td>"
    return f"<td>{row['accuracy']:.3f} <small>±{row['stderr']:.3f}, n {row['count']}</small></td>"


def _render_task(task: str, results: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    numbers = [(label, result["results"][result["protocol"]]) for label, result in results]
    series = {label: entry["by_length"] for label, entry in numbers if entry.get("by_length")}
    parts = [f"<h2>{escape(task)}</h2>"]
    if series:
        parts.append(_embed(draw_length_plot(series, title=task), f"{task}: accuracy by context length"))
    for label, entry in numbers:
        if "by_depth_and_length" in entry:
            text = f"{task}, {label}"
            parts.append(_embed(draw_heatmap(entry["by_depth_and_length"], title=text), f"{text}: depth by length"))
    parts += [_render_details(label, result) for label, result in results]
    return "\n".join(parts)


def _render_details(label: str, result: Mapping[str, Any]) -> str:
    facts = {
        **{
            f"{protocol} score": f"{_format_score(entry)}, {entry['count']} questions, "
            f"{entry['num_failed']} failed, {entry['num_empty']} empty answers"
            for protocol, entry in result["results"].items()
        },
        "source": result["source"],
        **result["settings"],
        **result["info"],
    }
    lines = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return f"<details><summary>{escape(label)}: settings</summary><dl>{lines}</dl></details>"


def _format_score(entry: Mapping[str, Any]) -> str:
    return "no public answers" if entry["score"] is None else f"{entry['score']:.4f} ±{entry['stderr']:.4f}"


def _embed(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}"></figure>'
