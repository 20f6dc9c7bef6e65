"""MMMU: finds the answer in a response and makes the table by subject (Yue et al. 2023, arXiv 2311.16502).

`official` is the benchmark's `mmmu/utils/eval_utils.py` with one change: a multiple-choice response without an option
is wrong, where the official script draws an option at random. `upstream` (InternVL, V2PE) finds the letter by
`eval.metrics.choice.cut_letter`. Open questions are parsed the same way under both.
"""

import re
from collections.abc import Iterable, Mapping

from eval.metrics.choice import cut_letter
from eval.metrics.protocol import Protocol
from eval.metrics.text import read_golds, read_text

MIN_WORDS_FOR_OPTION_TEXT = 6
DOMAINS: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_LONE_PUNCTUATION = frozenset(":,.!?;'")
_NUMBER_FORMS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234,567
    re.compile(r"-?\d+(?:\.\d+)?e[+-]?\d+"),  # 1.5e-3; the text is in lower case
    re.compile(r"-?(?:\d*\.\d+|\d+\b)(?!e[+-]?\d|[,\d])"),  # 12, 1.5, .5
)


def score(
    answer: object,
    response: str | None,
    *,
    options: Mapping[str, object] | None = None,
    protocol: Protocol = "official",
) -> float:
    """1 if the response names the right letter, or an accepted answer of an open question (one without options)."""
    if not options:
        return score_open(answer, response)
    letter = find_option(response, options) if protocol == "official" else cut_letter(response, options)
    return float(letter in read_golds(answer))


def find_option(response: str | None, options: Mapping[str, object]) -> str | None:
    """Official multiple-choice parse: `(B)`, else ` B `, else in more than five words the text of an option.

    Of several candidates the last one wins. None where the official script draws a letter at random.
    """
    said = read_text(response)
    for mark in ",.!?;:'":
        said = said.strip(mark)
    said = f" {said} "
    for form in ("({})", " {} "):
        written = {letter: form.format(letter) for letter in options}
        letter = _find_last(said, written)
        if letter is not None:
            return letter
    if len(said.split()) < MIN_WORDS_FOR_OPTION_TEXT:
        return None
    return _find_last(said.lower(), {letter: read_text(text).lower() for letter, text in options.items()})


def _find_last(said: str, written: Mapping[str, str]) -> str | None:
    """Key of the text whose last occurrence starts last; the first of equals."""
    places = {key: said.rfind(text) for key, text in written.items() if text in said}
    return max(places, key=lambda key: places[key]) if places else None


def score_open(answer: object, response: str | None) -> float:
    """1 if a parsed piece of the response contains an accepted text or equals an accepted number."""
    golds = {form for gold in read_golds(answer) for form in normalise(gold)}
    texts = [gold for gold in golds if isinstance(gold, str)]
    for piece in parse_open(response):
        if any(gold in piece for gold in texts) if isinstance(piece, str) else piece in golds:
            return 1.0
    return 0.0


def parse_open(response: str | None) -> set[str | float]:
    """What an open response may mean: the tails after words such as `answer `, and every number in them."""
    pieces = _find_key_pieces(read_text(response))
    numbers = [number for piece in pieces for form in _NUMBER_FORMS for number in form.findall(piece)]
    return {form for text in (*pieces, *numbers) for form in normalise(text)}


def _find_key_pieces(response: str) -> list[str]:
    """The shortest tail of every line with an indicator (in the last line `=` is one as well), else the whole text."""
    whole = response.strip().strip(".").lower()
    lines = whole.split("\n")
    tails = [_find_shortest_tail(line, is_last=number == len(lines)) for number, line in enumerate(lines, start=1)]
    return [tail for tail in tails if tail and tail not in _LONE_PUNCTUATION] or [whole]


def _find_shortest_tail(line: str, *, is_last: bool) -> str:
    shortest = ""
    for indicator in (*_INDICATORS, "=") if is_last else _INDICATORS:
        if indicator in line:
            tail = line.rpartition(indicator)[2].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def normalise(text: str) -> list[str | float]:
    """A number rounded to two places; else the text in lower case.

    A single character gets a space before or after it: as a bare character it would be found in almost any text.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def find_subject(data_id: str) -> str:
    """`validation_Public_Health_1` -> `Public_Health`."""
    return "_".join(data_id.split("_")[1:-1])


def summarise(rows: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """The official table from `(id, score)`: accuracy over questions by domain, by subject and overall.

    Returns:
        `{"num": count, "acc": accuracy rounded to three places}` under `Overall-<domain>` (all six), every subject
        that has questions, and `Overall`. As in the official script, ids of unknown subjects are ignored.
    """
    scores: dict[str, list[float]] = {}
    for data_id, score_ in rows:
        scores.setdefault(find_subject(data_id), []).append(score_)
    table: dict[str, dict[str, float]] = {}
    everything: list[float] = []
    for domain, subjects in DOMAINS.items():
        in_domain = [score_ for subject in subjects for score_ in scores.get(subject, [])]
        table[f"Overall-{domain}"] = _describe(in_domain)
        table |= {subject: _describe(scores[subject]) for subject in subjects if subject in scores}
        everything += in_domain
    return table | {"Overall": _describe(everything)}


def _describe(scores: list[float]) -> dict[str, float]:
    return {"num": len(scores), "acc": round(sum(scores) / len(scores), 3) if scores else 0}
