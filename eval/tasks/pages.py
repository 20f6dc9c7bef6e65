"""Documents of many pages: what MMLongBench-Doc, LongDocURL, SlideVQA and DUDE share, and how the first two are judged.

    response --a judge writes down the short answer that it gives--> short answer --rule--> score       `...-judged`
    response, asked for in a word or phrase                                       --rule--> score       without a judge

The published numbers were made the first way; the second needs no other model, and its numbers stand for themselves.

`placed_depth` of a question is a list: where each page that its answer needs stands among those shown, 0 first and 1
last. Several pages count as their mean depth, as several needles do in MM-NIAH. A question without such pages has none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from eval.core.data_root import Root
from eval.core.judge import JudgeRule
from eval.core.records import JsonObject
from eval.core.sample import Gold, Prediction, Sample
from eval.core.task import Scored, Task
from eval.metrics.documents import FORMATS
from eval.metrics.estimate import estimate_groups
from eval.metrics.protocol import Protocol
from eval.tasks.questions import estimate_cost
from internvl.data.natural_order import natural_key
from internvl.errors import DataError

MAX_NUM = 4  # tiles of a page, as V2PE had in MMLongBench
BRIEF_TOKENS, FREE_TOKENS = 64, 1024
JUDGED = "test-judged"
_EXTRACTED, _FORMAT = "Extracted answer:", "Answer format:"
_EXTRACTION = """Someone was asked a question about a document and said the text below. Write down the short answer \
that this text gives, without correcting it or adding to it.

- Its format is Integer, Float, String or List. Write a list as a Python list of strings: ['first', 'second'].
- If the text says that the document does not answer the question, the short answer is: Not answerable
- If the text only says that the pages cannot be seen or read, the short answer is: Fail to answer

Reply with two lines and nothing else:
Extracted answer: the short answer
Answer format: its format

Question: {question}
Text: {response}
"""


class Answer(TypedDict):
    """Gold answer and its format, a key of `FORMATS`."""

    text: object
    format: str


# gold answer, short answer, format -> score in 0..1
Rule = Callable[..., float]
# (data root, whether a word or phrase is asked for) -> samples
Reader = Callable[[Root, bool], list[Sample]]
# (scored answers, whether they are short as they are) -> more numbers
Aggregate = Callable[[Sequence[Scored], bool], JsonObject]


def read_answer(text: object, kind: str) -> Answer:
    """A gold answer. Raises DataError for an unknown format."""
    if kind not in FORMATS:
        raise DataError(f"answer_format is {kind!r}, expected one of {', '.join(FORMATS)}")
    return {"text": text, "format": kind}


def list_pages(folder: Path, *, most: int) -> tuple[Path, ...]:
    """The pictures of a document's pages in the natural order of their names; without any, the first one expected."""
    pages = [path for path in folder.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    return tuple(sorted(pages, key=lambda path: natural_key(path.name)))[:most] or (folder / "page-1.png",)


def ask_about_pages(
    sample_id: str,
    prompt: str,
    pages: Sequence[Path],
    *,
    answer: Gold,
    metadata: Mapping[str, object],
    evidence: Iterable[object] = (),
    first: int = 1,
) -> Sample:
    """A question about the pages of a document.

    Args:
        sample_id: Unique within the task.
        prompt: With one `<image>` per page.
        pages: Their pictures.
        answer: The gold answer.
        metadata: What groups are made by; where the evidence stands is added.
        evidence: Numbers of the pages that the answer needs.
        first: Number of the first page.
    """
    places = find_places(evidence, len(pages), first=first)
    depths = [place / max(1, len(pages) - 1) for place in places]
    return Sample(
        id=sample_id,
        prompt=prompt,
        images=tuple(pages),
        answer=answer,
        metadata={**metadata, **({"placed_depth": depths} if depths else {})},
        cost=estimate_cost(prompt, len(pages) * (MAX_NUM + 1)),
        needles=places,
    )


def find_places(pages: Iterable[object], num_pages: int, *, first: int = 1) -> tuple[int, ...]:
    """Places of the pages that an answer needs, 0 first, each once; `first` is the number of the first page."""
    places = (page - first for page in pages if isinstance(page, int))
    return tuple(dict.fromkeys(place for place in places if 0 <= place < num_pages))


def make_tasks(
    group: str,
    *,
    source: str,
    annotation: Path,
    read_samples: Reader,
    rule: Rule,
    aggregate: Aggregate,
    folders: tuple[Path, ...],
) -> list[Task]:
    """`GROUP/test`, scored by the rule, and `GROUP/test-judged`, scored after a judge has extracted the answer."""

    def score(answer: Answer, response: str, protocol: Protocol = "official") -> float:
        return rule(answer["text"], response.strip(), kind=answer["format"])

    def make(name: str, num_tokens: int, judge: JudgeRule | None) -> Task:
        return Task(
            name=f"{group}/{name}",
            version=1,
            source=source,
            annotation=annotation,
            read_samples=lambda data_root: read_samples(data_root, judge is None),
            max_new_tokens=num_tokens,
            max_num=MAX_NUM,
            score_answer=score,
            aggregate=lambda scored, edges: aggregate(scored, judge is None),
            folders=folders,
            judge=judge,
        )

    judge = JudgeRule(
        name=f"{group.replace('_', '-')}-extraction",
        version=1,
        write_prompt=write_extraction,
        read_verdict=lambda reply, gold: score(gold, read_extracted(reply)),
        by_rule=score,
    )
    return [make("test", BRIEF_TOKENS, None), make(JUDGED, FREE_TOKENS, judge)]


def write_extraction(prediction: Prediction) -> str:
    """What the judge is asked: our words, and the published order of reply."""
    return _EXTRACTION.format(question=prediction.metadata["question"], response=prediction.response)


def read_extracted(reply: str) -> str:
    """The short answer in a judge's reply. Raises ValueError if there is none."""
    _, found, rest = reply.partition(_EXTRACTED)
    if not found:
        raise ValueError(f"the reply has no {_EXTRACTED!r}")
    return rest.partition(_FORMAT)[0].strip()


def score_groups(
    scored: Sequence[Scored], groups: Mapping[str, Callable[[JsonObject], Iterable[str]]]
) -> dict[str, object]:
    """Means by group, for every way to group: name -> metadata of a question -> groups that it belongs to."""
    return {
        name: estimate_groups((group, item.score) for item in scored for group in read(item.metadata))
        for name, read in groups.items()
    }
