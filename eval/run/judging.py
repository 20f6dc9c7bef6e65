"""Judging: answers that no rule can score go to a judge, any server that speaks OpenAI's chat completions.

    predictions --prompts that judge.jsonl has no reply to--> judge --> judge.jsonl --verdicts--> predictions
    the same prompts with another seed, or verdicts of people  -->  how far the judge can be trusted

The judge is asked at temperature 0. A reply without a verdict, or a refused prompt, scores 0 and is counted.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
from tqdm import tqdm

from eval.core.fields import parse_rows
from eval.core.judge import JudgeRule, Replies, Reply, add_verdicts, read_verdicts, write_prompts
from eval.core.records import JsonObject, read_records
from eval.core.sample import Prediction
from eval.core.task import Task
from eval.metrics.agreement import measure_agreement
from eval.run.chat_server import ChatServer, read_completion
from internvl.errors import ConfigError, DataError, EvalError
from internvl.infer.flags import at_least, check_flags, flag

logger = logging.getLogger(__name__)

API_KEY = "JUDGE_API_KEY"
_SEED, _SEED_AGAIN = 0, 1


@dataclass(frozen=True)
class JudgeOptions:
    """Which judge is asked, and how it is checked. Raises ConfigError for values out of range or in conflict."""

    judge: str | None = flag(
        None,
        "address of a server with OpenAI's chat completions that scores what no rule can, such as "
        f"https://api.openai.com; its key is read from {API_KEY}",
        metavar="URL",
    )
    judge_model: str | None = flag(None, "with --judge: name of the model there", metavar="NAME")
    judge_requests: int = flag(
        8, "with --judge: answers that are judged at the same time (%(default)s)", read=int, check=at_least(1)
    )
    judge_again: int = flag(
        0,
        "with --judge: judge N answers of a task again, drawn at random, with another seed; how often both verdicts "
        "agree is written into the result",
        read=int,
        check=at_least(0),
        metavar="N",
    )
    judge_check: Path | None = flag(
        None,
        "jsonl of verdicts by people (id, score in 0..1, and task where ids are not unique); how often the judge "
        "agrees is written into the result",
        read=Path,
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        """Refuse wrong values and combinations."""
        check_flags(self)
        if (self.judge is None) != (self.judge_model is None):
            raise ConfigError("--judge and --judge_model belong together: the server, and which of its models")
        if self.judge_again and self.judge is None:
            raise ConfigError("--judge_again asks the judge: pass --judge and --judge_model")

    @property
    def server(self) -> ChatServer | None:
        """Where the judge is; None: it is not asked."""
        if self.judge is None or self.judge_model is None:
            return None
        return ChatServer(self.judge, self.judge_model, "--judge", "--judge_model", API_KEY)

    def check(self) -> None:
        """Whether the judge and the file of verdicts are there. Raises ConfigError or DataError if not."""
        if self.server is not None:
            self.server.check()
        if self.judge_check is not None:
            _read_human_verdicts(self.judge_check)


NO_JUDGE = JudgeOptions()


def judge_predictions(
    task: Task, predictions: Sequence[Prediction], folder: Path, options: JudgeOptions
) -> tuple[list[Prediction], JsonObject | None]:
    """The predictions with their verdicts, and what scores.json says about the judge (None: the task needs none).

    Saved replies of the judge are used, and the rest is asked if there is a judge. Without one, verdicts are those of
    the judge that was asked last, if any.

    Raises:
        EvalError: The judge is gone; its replies so far are kept.
    """
    rule = task.judge
    if rule is None:
        return list(predictions), None
    replies = Replies(folder)
    prompts = write_prompts(rule, predictions)
    if options.server is not None:
        _ask(options.server, rule, prompts, replies, num_requests=options.judge_requests)
        again = _draw(prompts, options.judge_again)
        _ask(options.server, rule, again, replies, num_requests=options.judge_requests, seed=_SEED_AGAIN)
    model = options.judge_model or replies.last_model
    verdicts = read_verdicts(rule, predictions, replies, model=model or "")
    if num_open := len(prompts) - len(verdicts):
        logger.warning(
            "%s needs a judge (%s): %d of %d answers have no verdict, so it has no score; the answers are saved: pass "
            "--judge URL --judge_model NAME to python -m eval.score %s",
            task.name, rule.name, num_open, len(prompts), folder,
        )  # fmt: skip
    facts = {
        "rule": rule.name,
        "version": rule.version,
        "model": model,
        "num_judged": len(verdicts),
        "num_unreadable": sum(verdict is None for verdict in verdicts.values()),
        "again": _compare(verdicts, read_verdicts(rule, predictions, replies, model=model or "", seed=_SEED_AGAIN)),
        "people": _compare_with_people(task, verdicts, options.judge_check),
    }
    if facts["num_unreadable"]:
        logger.warning(
            "%s: %s replies of the judge have no verdict and score 0, see %s",
            task.name, facts["num_unreadable"], replies.path,
        )  # fmt: skip
    return add_verdicts(predictions, verdicts), facts


def _draw(prompts: Mapping[str, str], count: int) -> dict[str, str]:
    """Some of the prompts, in another order."""
    names = random.Random(_SEED_AGAIN).sample(sorted(prompts), min(count, len(prompts)))
    return {name: prompts[name] for name in names}


def _ask(
    server: ChatServer,
    rule: JudgeRule,
    prompts: Mapping[str, str],
    replies: Replies,
    *,
    num_requests: int,
    seed: int = _SEED,
) -> None:
    """Ask for every reply that is not there yet, and again for those that were refused; equal prompts once."""
    open_prompts: dict[str, tuple[Reply, str]] = {}
    for sample_id, prompt in prompts.items():
        key = rule.name_prompt(prompt, model=server.model, seed=seed)
        known = replies.find(key)
        if known is None or known.text is None:
            blank = Reply(key, server.model, rule.name, rule.version, seed, sample_id, text=None)
            open_prompts.setdefault(key, (blank, prompt))
    if not open_prompts:
        return
    with (
        server.open() as client,
        replies.appending() as append,
        tqdm(total=len(open_prompts), desc=f"judging {rule.name}", unit="q", mininterval=1.0) as bar,
        ThreadPoolExecutor(num_requests) as pool,
    ):
        asked = [pool.submit(_ask_one, server, client, rule, *entry) for entry in open_prompts.values()]
        try:
            for future in as_completed(asked):
                append(future.result())
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that are being judged come to an end, and are not asked twice
            ended = [future.result() for future in asked if not future.cancelled() and future.exception() is None]
            for reply in ended:
                if replies.find(reply.key) != reply:
                    append(reply)
            raise


def _ask_one(server: ChatServer, client: httpx.Client, rule: JudgeRule, blank: Reply, prompt: str) -> Reply:
    system = [{"role": "system", "content": rule.system}] if rule.system else []
    body = {
        "messages": [*system, {"role": "user", "content": prompt}],
        "max_tokens": rule.max_tokens,
        "temperature": 0.0,
        "seed": blank.seed,
    }
    try:
        return replace(blank, text=read_completion(server.complete(client, body)))
    except DataError as error:
        return replace(blank, refusal=str(error))


def _compare(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> JsonObject | None:
    """Agreement over the answers that both rated; a reply without a verdict is a verdict of its own."""

    def round_verdict(verdict: float | None) -> float | None:
        return None if verdict is None else round(verdict, 2)  # people write 0.33 for a third

    pairs = [(round_verdict(one[name]), round_verdict(other[name])) for name in one if name in other]
    return asdict(measure_agreement(pairs)) if pairs else None


@dataclass(frozen=True)
class _HumanVerdict:
    id: str | int
    score: float
    task: str | None = None


def _read_human_verdicts(path: Path) -> list[_HumanVerdict]:
    def check(row: int, verdict: _HumanVerdict) -> _HumanVerdict:
        if not 0 <= verdict.score <= 1:
            raise DataError(f"the score is {verdict.score}, expected a number in 0..1")
        return verdict

    return parse_rows(path, read_records(path), _HumanVerdict, check)


def _compare_with_people(task: Task, verdicts: Mapping[str, float | None], path: Path | None) -> JsonObject | None:
    if path is None:
        return None
    people = {str(line.id): line.score for line in _read_human_verdicts(path) if line.task in (None, task.name)}
    found = _compare(verdicts, people)
    if found is None and verdicts:
        example = next(iter(verdicts))
        raise EvalError(f"--judge_check {path}: no verdict is about an answer of {task.name}, such as {example!r}")
    return found
