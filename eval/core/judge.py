"""Judge: a model that scores answers which no rule can, with one prompt and one reply per answer.

    prediction --write_prompt--> prompt --a model behind an address--> reply --read_verdict--> score in 0..1

    RUN/GROUP/TASK/judge.jsonl    every reply, appended as it comes, so that nothing is asked twice

`eval.run.judging` asks; this module holds the rule and the replies, so that reports read them without a server.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eval.core.fields import parse_record
from eval.core.output import LineWriter, cut_unfinished_line
from eval.core.result import explain_damage
from eval.core.sample import Gold, Prediction
from internvl.errors import DataError, EvalError

REPLIES_NAME = "judge.jsonl"


@dataclass(frozen=True)
class JudgeRule:
    """What a judge is asked, and how its reply is read."""

    name: str  # such as `mlvu-summary`
    version: int  # of the prompt; raised when it changes
    write_prompt: Callable[[Prediction], str]  # the question is in the prediction's metadata
    # (the judge's reply, gold answer) -> score in 0..1; raises ValueError if the reply has no verdict
    read_verdict: Callable[[str, Gold], float]
    system: str = ""  # system message; empty: none
    max_tokens: int = 512  # of a reply
    # (gold answer, response) -> score in 0..1 by a published rule that needs no judge. Its mean stands in scores.json
    # as `by_rule`, beside the judge's score and never in its place. None: there is no such rule
    by_rule: Callable[[Gold, str], float] | None = None

    def name_prompt(self, prompt: str, *, model: str, seed: int = 0) -> str:
        """The key under which a reply is saved: the same exactly when the same judge is asked the same."""
        asked = [model, self.name, self.version, self.system, self.max_tokens, prompt, seed]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Reply:
    """A line of judge.jsonl."""

    key: str  # see `JudgeRule.name_prompt`
    model: str  # the judge
    rule: str  # name of the rule ...
    version: int  # ... and version of its prompt
    seed: int
    id: str  # the first sample with this prompt
    text: str | None  # None: the server refused the prompt
    refusal: str | None = None  # why it did


class Replies:
    """The replies in a task's folder, which outlive the process. Raises EvalError that names a broken line."""

    def __init__(self, folder: Path):
        self.path = folder / REPLIES_NAME
        self._by_key: dict[str, Reply] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # a killed process leaves half a line
            try:
                reply = parse_record(Reply, json.loads(line))
            except (ValueError, DataError) as error:
                raise EvalError(f"{self.path} line {number} is broken ({error}); delete it and start again") from error
            self._keep(reply)

    def _keep(self, reply: Reply) -> None:
        self._by_key.pop(reply.key, None)  # the latest stands last
        self._by_key[reply.key] = reply

    def find(self, key: str) -> Reply | None:
        """The latest reply; None if this was not asked."""
        return self._by_key.get(key)

    @property
    def last_model(self) -> str | None:
        """The judge that was asked last; None without replies."""
        return next((reply.model for reply in reversed(self._by_key.values())), None)

    @contextmanager
    def appending(self) -> Iterator[Callable[[Reply], None]]:
        """What saves a reply at once; for one process, which owns the run's folder."""
        if self.path.exists():
            cut_unfinished_line(self.path)
        lines = LineWriter(self.path)

        def append(reply: Reply) -> None:
            lines.append(asdict(reply))
            self._keep(reply)

        try:
            yield append
        finally:
            lines.close()


def write_prompts(rule: JudgeRule, predictions: Sequence[Prediction]) -> dict[str, str]:
    """What a judge is asked, by id of the sample; failed ones are wrong without. Raises EvalError for damaged ones."""
    prompts = {}
    for entry in predictions:
        if entry.failure is None:
            with explain_damage(f"sample {entry.id!r} cannot be judged", "answer it again with eval.run"):
                prompts[entry.id] = rule.write_prompt(entry)
    return prompts


def read_verdict(rule: JudgeRule, reply: Reply, gold: Gold) -> float | None:
    """The score that a reply gives; None if it cannot be read. Raises EvalError for a score outside 0..1."""
    if reply.text is None:
        return None
    try:
        verdict = rule.read_verdict(reply.text, gold)
    except ValueError:
        return None
    if not 0 <= verdict <= 1:
        raise EvalError(f"judge rule {rule.name} reads {reply.text[:80]!r} as {verdict}, expected a score in 0..1")
    return float(verdict)


def read_verdicts(
    rule: JudgeRule, predictions: Sequence[Prediction], replies: Replies, *, model: str, seed: int = 0
) -> dict[str, float | None]:
    """Verdicts by id of the sample, None for replies without one; answers that were not judged are left out."""
    golds = {prediction.id: prediction.answer for prediction in predictions}
    verdicts = {}
    for sample_id, prompt in write_prompts(rule, predictions).items():
        reply = replies.find(rule.name_prompt(prompt, model=model, seed=seed))
        if reply is not None:
            verdicts[sample_id] = read_verdict(rule, reply, golds[sample_id])
    return verdicts


def add_verdicts(predictions: Sequence[Prediction], verdicts: Mapping[str, float | None]) -> list[Prediction]:
    """The predictions with their verdicts: 0 for a reply that has none, None for answers that were not judged."""
    return [
        replace(entry, verdict=verdicts[entry.id] or 0.0) if entry.id in verdicts else entry for entry in predictions
    ]


def read_judged(rule: JudgeRule | None, predictions: Sequence[Prediction], folder: Path) -> list[Prediction]:
    """The predictions with the verdicts that are saved in a task's folder; as they are where none are."""
    if rule is None:
        return list(predictions)
    replies = Replies(folder)
    return add_verdicts(predictions, read_verdicts(rule, predictions, replies, model=replies.last_model or ""))
