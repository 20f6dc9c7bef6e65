"""Scorers by name, for benchmarks that are described in YAML: each a record of its options with a rule.

    scorer: relaxed                              the rule as published
    scorer: {name: relaxed, tolerance: 0.1}      with an option

Gold answers of such benchmarks are `{"answer": accepted texts, "options": text by letter}` whatever the scorer is, so
that saved predictions can be scored by another one. `python -m eval.run --list_scorers` prints all scorers.
"""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

from eval.core.fields import parse_record
from eval.core.judge import JudgeRule
from eval.core.sample import Gold, Prediction
from eval.metrics import anls, choice, contains, exact, numeric, relaxed, rouge, vqa
from eval.tasks.template import fill_template, list_fields
from internvl.errors import ConfigError, DataError, did_you_mean

_SCORE = re.compile(r"score\W{0,4}?(-?\d+(?:\.\d+)?)", re.IGNORECASE)


class Scorer(Protocol):
    """A scorer with its options, which are its fields."""

    needs_options: ClassVar[bool]  # whether questions must have options to choose from

    @property
    def judge(self) -> JudgeRule | None:
        """What a judge is asked; None: `score` is the rule."""
        ...

    def score(self, gold: Gold, response: str) -> float:
        """Score in 0..1. Raises DataError or ValueError for a gold answer that the rule cannot take."""
        ...


def _option(default: object, help: str) -> Any:
    return field(default=default, metadata={"help": help})


class _Rule:
    """A scorer that needs neither options nor a judge."""

    needs_options: ClassVar[bool] = False

    @property
    def judge(self) -> JudgeRule | None:
        """No judge."""
        return None


@dataclass(frozen=True)
class Exact(_Rule):
    """1 if the response equals an accepted answer."""

    ignore_case: bool = _option(True, "whether Blue is blue")
    ignore_punctuation: bool = _option(False, "leave out punctuation marks and doubled spaces")

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/exact.py."""
        return exact.score(gold["answer"], response, **vars(self))


@dataclass(frozen=True)
class Anls(_Rule):
    """Best edit similarity to an accepted answer (DocVQA's rule)."""

    threshold: float = _option(anls.THRESHOLD, "similarity below which the score is 0")

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/anls.py."""
        return anls.score(gold["answer"], response, threshold=self.threshold)


@dataclass(frozen=True)
class Relaxed(_Rule):
    """1 if a number is close to an accepted one, or text equals it (ChartQA's rule)."""

    tolerance: float = _option(relaxed.TOLERANCE, "largest error as a share of the accepted number")

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/relaxed.py."""
        return relaxed.score(gold["answer"], response, "official", tolerance=self.tolerance)


@dataclass(frozen=True)
class Vqa(_Rule):
    """Share of the people who gave this answer, of several people's answers (VQAv2's rule)."""

    rule: Literal["vqa", "textvqa"] = _option("vqa", "VQAv2's or TextVQA's normalisation")

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/vqa.py."""
        return (vqa.score_vqa if self.rule == "vqa" else vqa.score_m4c)(gold["answer"], response)


@dataclass(frozen=True)
class Choice(_Rule):
    """1 if the response names the right option, by letter or by text (VLMEvalKit's rule)."""

    needs_options: ClassVar[bool] = True

    answer_is: Literal["letter", "text", "index", "number"] = _option(
        "letter",
        "what the answer column holds: the letter or else the text of an option, only its text, its index from 0, or "
        "its number from 1",
    )

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/choice.py. Raises DataError for an answer that is none of the options."""
        letters = [self._find_letter(answer, gold["options"]) for answer in gold["answer"]]
        return choice.score(letters, response, options=gold["options"], protocol="official")

    def _find_letter(self, answer: str, options: Mapping[str, str]) -> str:
        letters = list(options)
        if self.answer_is in ("index", "number"):
            place = int(answer) - (self.answer_is == "number") if answer.isdecimal() else -1
            if 0 <= place < len(letters):
                return letters[place]
        elif self.answer_is == "letter" and answer in options:
            return answer
        elif answer in options.values():
            return next(letter for letter, text in options.items() if text == answer)
        known = ", ".join(f"{letter} ({text})" for letter, text in options.items())
        raise DataError(f"{answer!r} is no {self.answer_is} of an option; options: {known}")


@dataclass(frozen=True)
class Contains(_Rule):
    """1 if accepted answers occur in the response."""

    ignore_case: bool = _option(True, "whether Blue is blue")
    whole_words: bool = _option(True, "whether art must stand alone and is not found in party")
    need: Literal["any", "all"] = _option("any", "how many of the answers must occur")

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/contains.py."""
        return contains.score(gold["answer"], response, **vars(self))


@dataclass(frozen=True)
class Rouge(_Rule):
    """ROUGE-L of the response and the accepted answer that is most like it."""

    ignore_case: bool = _option(False, "whether Blue is blue")

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/rouge.py."""
        texts = [response, *gold["answer"]]
        said, *golds = [text.lower() for text in texts] if self.ignore_case else texts
        return max(rouge.score_rouge_l(text, said) for text in golds)


@dataclass(frozen=True)
class Numeric(_Rule):
    """1 if the number that the response gives is close enough to an accepted one."""

    relative: float = _option(0.0, "largest error as a share of the accepted number")
    absolute: float = _option(0.0, "largest error; the larger of both counts")
    take: Literal["first", "last"] = _option("last", "which number of the response is its answer")

    def score(self, gold: Gold, response: str) -> float:
        """See eval/metrics/numeric.py. Raises ValueError for an answer that is not a number."""
        return numeric.score(gold["answer"], response, **vars(self))


JUDGE_PROMPT = """\
Grade an answer to a question.

Question: {question}
Reference answer: {answer}
Answer to grade: {response}

Say in one sentence why, then end with the line "Score: N", where N is a whole number from {lowest} (wrong) to {highest}
(as good as the reference)."""


@dataclass(frozen=True)
class Judge(_Rule):
    """What a judge says, a model behind --judge."""

    prompt: str = _option(
        JUDGE_PROMPT, "what it is asked: a template with {question}, {answer}, {response}, {lowest}, {highest}, columns"
    )
    system: str = _option("", "its system message")
    lowest: float = _option(0, "the score that counts 0 ...")
    highest: float = _option(10, "... and the score that counts 1; the last `Score: N` of its reply is taken")
    max_tokens: int = _option(512, "length of its reply")

    def __post_init__(self) -> None:
        """Refuse an empty scale."""
        if self.lowest >= self.highest:
            raise DataError(f"lowest is {self.lowest:g} and highest {self.highest:g}, expected a smaller and a larger")

    @property
    def judge(self) -> JudgeRule:
        """What is asked of the judge, and how its reply is read."""
        return JudgeRule("own", 1, self._write_prompt, self._read_verdict, self.system, self.max_tokens)

    def score(self, gold: Gold, response: str) -> float:
        """Nothing without the judge."""
        return 0.0

    def _write_prompt(self, prediction: Prediction) -> str:
        gold = prediction.answer or {"answer": []}
        values = {
            **prediction.metadata["row"],
            "question": prediction.metadata["question"],
            "answer": " or ".join(gold["answer"]),
            "response": prediction.response,
            "lowest": f"{self.lowest:g}",
            "highest": f"{self.highest:g}",
        }
        where = f"the judge's prompt, sample {prediction.id!r}"
        missing = [name for name in list_fields(self.prompt, where=where) if name not in values]
        if missing:
            raise ConfigError(f"{where}: no column {missing[0]!r}{did_you_mean(missing[0], values)}")
        return fill_template(self.prompt, {name: str(value) for name, value in values.items()}, where=where)

    def _read_verdict(self, reply: str, gold: Gold) -> float:
        found = _SCORE.findall(reply)
        verdict = (float(found[-1]) - self.lowest) / (self.highest - self.lowest) if found else -1.0
        if not 0 <= verdict <= 1:
            raise ValueError(f"no score from {self.lowest:g} to {self.highest:g}")
        return verdict


SCORERS: Mapping[str, type[Scorer]] = {
    "exact": Exact,
    "anls": Anls,
    "relaxed": Relaxed,
    "vqa": Vqa,
    "choice": Choice,
    "contains": Contains,
    "rouge": Rouge,
    "numeric": Numeric,
    "judge": Judge,
}


def make_scorer(given: str | Mapping[str, object]) -> Scorer:
    """The scorer that a benchmark file names: a name, or an object with `name` and options.

    Raises DataError for an unknown scorer or option, or a value of a wrong type.
    """
    values = {"name": given} if isinstance(given, str) else dict(given)
    name = str(values.pop("name", None))
    if name not in SCORERS:
        raise DataError(f"unknown scorer {name!r}{did_you_mean(name, SCORERS)}; expected one of {', '.join(SCORERS)}")
    kind = SCORERS[name]
    check_keys(values, _list_options(kind), where=f"scorer {name}")
    return parse_record(kind, values, place=("scorer",))


def check_keys(values: Mapping[str, object], known: Mapping[str, object], *, where: str) -> None:
    """Refuse an object with a key that nobody reads. Raises DataError."""
    for key in values:
        if key not in known:
            expected = ", ".join(known) or "none"
            raise DataError(f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}; known: {expected}")


def describe_scorers() -> str:
    """All scorers with their options, defaults and meanings, for a terminal."""
    lines = []
    for name, kind in SCORERS.items():
        lines.append(f"{name:<10} {(kind.__doc__ or '').strip()}")
        for key, entry in _list_options(kind).items():
            default = "see docs/your_benchmark.md" if entry.default == JUDGE_PROMPT else repr(entry.default)
            lines.append(f"    {key:<20} {entry.metadata['help']} ({default})")
    return "\n".join(lines)


def _list_options(kind: type) -> dict[str, Field[object]]:
    return {entry.name: entry for entry in fields(kind)}
