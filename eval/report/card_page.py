"""The part of a report page that shows questions: cards, and the bar that filters them."""

from html import escape

from eval.report.gallery import RIGHT, Card, Picture, Response
from eval.report.theme import FILTERS


def render_filter() -> str:
    """Buttons and a search field; hidden until the script runs."""
    buttons = "".join(f'<button type="button" value="{name}">{name}</button>' for name in FILTERS)
    return (
        f'<div id="filter" hidden><span class=dim>questions:</span>{buttons}'
        '<input type="search" placeholder="find text" aria-label="find text"><output class=dim></output></div>'
    )


def render_card(card: Card) -> str:
    """One question, its pictures, gold answer and responses."""
    facts = "".join(f"<span>{escape(name)} {escape(value)}</span>" for name, value in card.facts.items())
    media = "".join(map(_render_picture, card.pictures))
    answers = "".join(map(_render_response, card.responses))
    prompt = f'<pre class="prompt">{escape(card.prompt)}</pre>' if card.prompt else ""
    return (
        f'<article class="card" data-states="{" ".join(card.states)}"><header><b>{escape(card.id)}</b>{facts}</header>'
        f"{f'<div class=media>{media}</div>' if media else ''}{prompt}"
        f'<div class="answers"><small>gold</small><pre>{escape(card.gold)}</pre>{answers}</div></article>\n'
    )


def _render_picture(picture: Picture) -> str:
    caption = f"<figcaption class=dim>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    if not picture.source:
        return f'<figure class="dim">{escape(picture.caption) or "picture"} (not shown)</figure>'
    return (
        f'<figure><img alt="{escape(picture.caption)}" src="{escape(picture.source)}" loading="lazy">{caption}</figure>'
    )


def _render_response(response: Response) -> str:
    if response.failure is not None:
        mark, kind = f"failed: {response.failure}", "is-wrong"
    elif response.score is None:
        mark, kind = "not scored", "dim"
    elif response.score >= RIGHT:
        mark, kind = "right", "is-right"
    else:
        mark, kind = ("wrong", "is-wrong") if response.score <= 0 else (f"{response.score:.2f}", "is-part")
    said = f"<pre>{escape(response.text)}</pre>" if response.text.strip() else "<span class=dim>(nothing)</span>"
    return (
        f'<small title="{escape(response.cost)}">{escape(response.setting)}</small>'
        f'<div><span class="mark {kind}">{escape(mark)}</span> {said}</div>'
    )
