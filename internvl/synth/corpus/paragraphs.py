"""Paragraphs and images out of text, Markdown and HTML, and paragraphs cut into pieces of a few hundred characters.

Placeholders and special tokens are removed from the text, so the counted tokens are those that a model reads.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from internvl.model.conversation import neutralise_special_tokens

MAX_BLOCK = 400  # characters
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")
_MARKDOWN_IMAGE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)>\s]+)[^)]*\)")
_HTML_IMAGE = re.compile(r"<img\b[^>]*?\bsrc\s*=\s*[\"']?([^\"'\s>]+)[^>]*>", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"<(/?)(image|video)>", re.IGNORECASE)
_PARAGRAPH_TAGS = frozenset((
    "address", "article", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure", "footer", "h1", "h2",
    "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "td", "th",
    "tr", "ul",
))  # fmt: skip


def split_text(text: str, *, is_markdown: bool) -> Iterator[tuple[str, str]]:
    """("text", paragraph) and ("image", source) in reading order."""
    for paragraph in re.split(r"\n\s*\n", text):
        if not is_markdown:
            yield "text", paragraph
            continue
        position = 0
        matches = [*_MARKDOWN_IMAGE.finditer(paragraph), *_HTML_IMAGE.finditer(paragraph)]
        for match in sorted(matches, key=lambda match: match.start()):
            yield "text", paragraph[position : match.start()]
            yield "image", match[1]
            position = match.end()
        yield "text", paragraph[position:]


class _HtmlReader(HTMLParser):
    """Collects paragraphs and images of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[tuple[str, str]] = []
        self._text: list[str] = []
        self._num_silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._num_silent += tag in ("script", "style")
        if tag in _PARAGRAPH_TAGS:
            self.end_paragraph()
        source = dict(attrs).get("src")
        if tag == "img" and source:
            self.end_paragraph()
            self.parts.append(("image", source))

    def handle_endtag(self, tag: str) -> None:
        self._num_silent = max(self._num_silent - (tag in ("script", "style")), 0)
        if tag in _PARAGRAPH_TAGS:
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self._num_silent:
            self._text.append(data)

    def end_paragraph(self) -> None:
        self.parts.append(("text", "".join(self._text)))
        self._text = []


def split_html(text: str) -> list[tuple[str, str]]:
    """As `split_text`, of a page of HTML; scripts and styles are left out."""
    reader = _HtmlReader()
    reader.feed(text)
    reader.close()
    reader.end_paragraph()
    return reader.parts


def clean_text(text: str) -> str:
    """Text on one line that holds no placeholder and no special token."""
    text = _PLACEHOLDER.sub(r"\1\2", " ".join(text.split()))
    return neutralise_special_tokens(text)


def cut_text(text: str, *, max_characters: int = MAX_BLOCK) -> list[str]:
    """Pieces of at most `max_characters`, cut between sentences where there are any, else between words."""
    pieces: list[str] = []
    for sentence in _SENTENCE.split(clean_text(text)):
        for fragment in _cut_sentence(sentence, max_characters):
            if pieces and len(pieces[-1]) + 1 + len(fragment) <= max_characters:
                pieces[-1] += f" {fragment}"
            else:
                pieces.append(fragment)
    return [piece for piece in pieces if piece]


def _cut_sentence(sentence: str, max_characters: int) -> Iterator[str]:
    while len(sentence) > max_characters:
        border = sentence.rfind(" ", 1, max_characters + 1)
        border = border if border > 0 else max_characters
        yield sentence[:border].strip()
        sentence = sentence[border:].strip()
    yield sentence
