"""Gallery: questions with their pictures, gold answers and responses, which show why a score is what it is.

    answers of several runs + samples  -->  the worst questions and some right ones  -->  cards

A card holds everything that a page shows of one question, cut to a size that a page can hold.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.core.baselines import name_gold
from eval.core.data_root import read_data_root
from eval.core.records import JsonObject
from eval.core.sample import Gold, Sample
from eval.metrics.mm_niah import DEPTH_STEP, find_depth_cell
from eval.report.answers import AnsweredTask, ScoredAnswer
from eval.report.excerpt import Part, cut_middle, excerpt, find_needles
from eval.report.pairs import find_length
from eval.report.pictures import Picture, Thumbnails, show_media
from internvl.errors import InternVLError

logger = logging.getLogger(__name__)

RIGHT = 0.999  # from this score on an answer is right; Rouge of equal texts is a little below 1
MAX_RESPONSE, MAX_PROMPT, MAX_FACT = 2000, 2400, 80
_NO_FACTS = ("question", "id", "index", "placed_depth")  # of a sample's metadata: stand elsewhere on a card
STATES = ("wrong", "right", "failed", "empty", "gained", "lost", "differ", "unscored")


@dataclass(frozen=True)
class Response:
    """What one run said."""

    run: str
    text: str  # the response, cut if long
    score: float | None  # in 0..1; None where no answer is public or the rule cannot take one question alone
    failure: str | None  # why there is no response
    cost: str  # tokens, tiles, last position and seconds in words

    @property
    def verdict(self) -> tuple[str, str]:
        """(what a page says of the response, its style there)."""
        if self.failure is not None:
            return f"failed: {self.failure}", "is-wrong"
        if self.score is None:
            return "not scored", "dim"
        if self.score >= RIGHT:
            return "right", "is-right"
        return ("wrong", "is-wrong") if self.score <= 0 else (f"{self.score:.2f}", "is-part")


@dataclass(frozen=True)
class Card:
    """One question."""

    id: str
    prompt: Sequence[Part]  # what the model was asked, cut if long, but not where a needle stands
    gold: str  # the gold answer as JSON or text
    facts: Mapping[str, str]  # further facts
    length: str  # label of its context length; empty where the task has no bins of length
    depth: str  # part of the context that has the needle; empty where it is not known
    responses: tuple[Response, ...]  # of the reference first
    pictures: tuple[Picture, ...]  # some of its pictures and frames, first what the answer needs

    @property
    def states(self) -> tuple[str, ...]:
        """Those of `STATES` that are true; `right` is right in every run, `gained` and `lost` are against the first."""
        scores = [response.score for response in self.responses if response.score is not None]
        changes = [round(score - scores[0], 6) for score in scores]
        found = {
            "wrong": any(score < RIGHT for score in scores),
            "right": bool(scores) and all(score >= RIGHT for score in scores),
            "failed": any(response.failure is not None for response in self.responses),
            "empty": any(not response.text.strip() for response in self.responses),
            "gained": any(change > 0 for change in changes),
            "lost": any(change < 0 for change in changes),
            "differ": any(changes),
            "unscored": not scores,
        }
        return tuple(name for name in STATES if found[name])


def collect_cards(answered: AnsweredTask, *, limit: int, thumbnails: Thumbnails) -> list[Card]:
    """Up to `limit` cards of questions of a task, worst first.

    Without the task's data cards have neither prompts nor pictures.
    """
    questions = answered.by_question()
    samples = _read_samples(answered) if questions else {}
    chosen = choose_questions(questions, limit)
    for sample_id in chosen:  # what answers need is made first, before a limit of size is reached
        if sample_id in samples:
            show_media(samples[sample_id], [], thumbnails, only_needed=True)
    return [_make_card(answered, questions[sample_id], samples.get(sample_id), thumbnails) for sample_id in chosen]


def _read_samples(answered: AnsweredTask) -> dict[str, Sample]:
    """The task's questions by id; none where the data has gone."""
    first = next(iter(answered.results.values()))
    try:
        samples = answered.task.read_samples(read_data_root(first.info["data_root"]))
    except (InternVLError, OSError, KeyError) as error:
        logger.warning("%s: prompts and pictures are not shown: %s", answered.task.name, error)
        return {}
    return {sample.id: sample for sample in samples}


def choose_questions(by_id: Mapping[str, Mapping[str, ScoredAnswer]], limit: int) -> list[str]:
    """Ids of the questions to show: failed ones, then those with the worst mean scores, a quarter of right ones.

    Questions of one rank are taken evenly from all of them, so that not only the first ones of a file are seen.
    """

    def rank(sample_id: str) -> tuple[bool, float]:
        entries = by_id[sample_id].values()
        scores = [answer.score for answer in entries if answer.score is not None]
        has_failed = any(answer.prediction.failure is not None for answer in entries)
        return not has_failed, round(sum(scores) / len(scores), 3) if scores else 0.0

    ranks: dict[tuple[bool, float], list[str]] = {}
    for sample_id in by_id:
        ranks.setdefault(rank(sample_id), []).append(sample_id)
    bad = [ranks[key] for key in sorted(ranks) if key[1] < RIGHT]
    good = [ranks[key] for key in sorted(ranks) if key[1] >= RIGHT]
    num_good = sum(map(len, good))
    chosen = _take(bad, limit - min(num_good, limit // 4))
    return chosen + _take(good, limit - len(chosen))


def _take(groups: Sequence[Sequence[str]], limit: int) -> list[str]:
    taken: list[str] = []
    for group in groups:
        num = min(len(group), limit - len(taken))
        taken += [group[place * len(group) // num] for place in range(num)]
    return taken


def _make_card(
    answered: AnsweredTask, answers: Mapping[str, ScoredAnswer], sample: Sample | None, thumbnails: Thumbnails
) -> Card:
    first = next(iter(answers.values())).prediction
    prompt = sample.prompt if sample is not None else str(first.metadata.get("question", ""))
    depths = _list_depths(first.metadata)
    needles = find_needles(prompt, sample.needles, depths) if sample is not None else []
    bins = next(iter(answered.results.values())).headline.by_length
    return Card(
        id=first.id,
        prompt=excerpt(prompt, needles, MAX_PROMPT),
        gold="not public" if first.answer is None else cut_middle(_write_gold(first.answer), MAX_RESPONSE),
        facts=_list_facts(first.metadata, depths),
        length=find_length(first.metadata.get("context_length"), bins) or "",
        depth=_label_depth(depths),
        responses=tuple(_make_response(run, answer) for run, answer in answers.items()),
        pictures=tuple(show_media(sample, depths, thumbnails)) if sample is not None else (),
    )


def _make_response(run: str, answer: ScoredAnswer) -> Response:
    prediction = answer.prediction
    cost = (
        f"{prediction.num_prompt_tokens:,} tokens, {prediction.num_tiles} tiles, last position "
        f"{prediction.last_position:,.1f}, {prediction.seconds:.2f} s"
    )
    return Response(run, cut_middle(prediction.response, MAX_RESPONSE), answer.score, prediction.failure, cost)


def _list_depths(metadata: JsonObject) -> list[float]:
    """Depth of each needle, 0 at the beginning of the context."""
    depth = metadata.get("placed_depth")
    depths = depth if isinstance(depth, list) else [depth]
    return [float(entry) for entry in depths if isinstance(entry, int | float) and 0 <= entry <= 1]


def _label_depth(depths: Sequence[float]) -> str:
    """`0.2-0.4`: the part of the context, of several needles by their mean depth."""
    if not depths:
        return ""
    low = find_depth_cell(depths) * DEPTH_STEP
    return f"{low:.1f}-{low + DEPTH_STEP:.1f}"


def _write_gold(answer: Gold) -> str:
    """A gold answer as it is saved; an option index with its letter."""
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return f"{text} ({name_gold(answer)})" if isinstance(answer, int) else text


def _list_facts(metadata: JsonObject, depths: Sequence[float]) -> dict[str, str]:
    """Depths, then numbers and short texts of a sample's metadata."""
    facts = {"depth": ", ".join(f"{depth:.2f}" for depth in depths)} if depths else {}
    for name, value in metadata.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, (str, int, float)) and len(text) <= MAX_FACT and name not in _NO_FACTS:
            facts[name] = text
    return facts
