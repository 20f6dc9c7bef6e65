"""Rendering: fills a template and gives an HTML page, which loads nothing but pictures from the folder beside it.

Whatever comes from data or from a model is escaped by the templates, and a content security policy lets the page's own
script run and no other: a response `<script>` is text, twice over.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from eval.report.gallery import Card
from eval.report.plots import encode_svg
from eval.report.tables import format_chance, format_interval, format_p

_PACKAGE = "eval.report"  # has the frame of a page, its style and its script


def render(template: str, *, title: str, package: str = _PACKAGE, with_script: bool = False, **content: object) -> str:
    """A whole page: a file of the folder `templates` of a package, filled with `content`.

    `package` is needed if its templates extend those of `eval.report`; `with_script` adds the filter of questions.
    """
    environment = _open_templates(package)
    assert environment.loader is not None
    script, _, _ = environment.loader.get_source(environment, "questions.js")
    # The browser hashes what stands between the script tags, so the policy must be made from exactly that text.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return environment.get_template(template).render(
        title=title, policy=Markup(policy), script=Markup(script) if with_script else "", **content
    )


def render_cards(cards: Iterable[Card]) -> Markup:
    """Questions as a JSON list of their elements in HTML, to stand inside a `<script>` element."""
    show_card = _open_templates(_PACKAGE).get_template("questions.html.j2").module.show_card  # type: ignore[attr-defined]
    # `<` would end the element, or begin a comment in it.
    return Markup(json.dumps([str(show_card(card)) for card in cards]).replace("<", "\\u003c"))


@cache
def _open_templates(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(_PACKAGE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "chance": format_chance,
        "code": mark_code,
        "interval": format_interval,
        "p_value": format_p,
    }
    return environment


def embed(figure: Figure) -> Markup:
    """A figure as SVG for a template; matplotlib escapes the texts in it."""
    return Markup(encode_svg(figure))


def mark_code(text: str) -> Markup:
    """Text with markdown's code marks as HTML."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
