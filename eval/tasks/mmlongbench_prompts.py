"""MMLongBench's records and what is asked about them (`data.py` of EdinburghNLP/MMLongBench).

    line --parse_record--> VisualRag, Haystack, Needle, ... --its `ask`--> Question: context, question, pictures, answer

The texts are the benchmark's own: its scorers look for the answer in the form that they ask for.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase

from eval.core.fields import parse_record
from eval.metrics.mmlongbench import FORMATS, read_list
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

_FORM = " Write your answer in the following format:\nAnswer: [answer]\n\n{context}\n\nQuestion: {question}"
_INTERLEAVED = "You are given interleaved text and images. Please answer the question"
RAG = (
    "Use the given documents to write a concise and short answer to the question about the entity shown in the image."
    + _FORM
)
HAYSTACK = "You are given a set of images. Please answer the question in Yes or No based on the given images." + _FORM
NEEDLE = f"{_INTERLEAVED} based on the given text and images.{_FORM}"
NEEDLE_OPTIONS = f"{_INTERLEAVED} with the option's letter (A, B, etc.) based on the given text and images.{_FORM}"
CLASSES = (
    "You need to recognize entities in images. Use the provided mapping from the image to label to assign a label to "
    'the test image. Only output "label: {{label}}" and nothing else.\n\nTraining examples:\n{context}\n\n'
    "Now classify this image: {question}"
)
REPORT = (
    "You are given a government report from U.S. Government Accountability Office (GAO), and you are tasked to "
    "summarize the report. Write a concise summary (around 550 words) organized in multiple paragraphs. Where "
    "applicable, the summary should contain a short description of why GAO did this study, what GAO found, and what "
    "GAO recommends.\n\nGovernment Report:\n{context}\n\nNow please summarize the report."
)
LAWSUIT = (
    "You are given the legal documents in a civil rights lawsuit, and you are tasked to summarize the case. Write a "
    "concise summary of one paragraph (200 to 250 words). The summary should contain a short description of the "
    "background, the parties involved, and the outcomes of the case.\n\nLegal documents:\n{context}\n\n"
    "Now please summarize the case."
)
DOCUMENT = (
    "You are given a document with text and images, and a question. Answer the question as concisely as you can, "
    "using a single phrase or sentence if possible. If the question cannot be answered based on the information in "
    "the article, write 'Not answerable.'" + _FORM
)
_NAME_LENGTH = 15  # characters of a document's name that a prompt shows


@dataclass(frozen=True)
class Question:
    """What a record asks."""

    context: str
    question: str  # empty where the context is all
    images: list[str]  # paths below the folder of pictures, in the order of `<image>` in context and question
    answer: object  # in the form that the rule takes


@dataclass(frozen=True)
class _Passage:
    text: str


@dataclass(frozen=True)
class _TitledPassage:
    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Record(ABC):
    """What every record has, besides what is asked."""

    id: str | int
    length: float | None = None  # tokens, as the benchmark counts them
    depth: object = None  # of the needle, a share of the context; other values where there are several

    @abstractmethod
    def ask(self) -> Question:
        """What the record asks. Raises DataError for names of pages that say no document or page."""


@dataclass(frozen=True, kw_only=True)
class VisualRag(Record):
    """A question about the entity on a picture, among passages about others."""

    question: str
    image: str
    answer: str | list[object]
    ctxs: list[_TitledPassage]

    def ask(self) -> Question:
        """The passages, then the picture and the question."""
        passages = (f"Document (Title: {passage.title}): {passage.text}" for passage in self.ctxs)
        return Question("\n\n".join(passages), IMAGE_PLACEHOLDER + self.question, [self.image], self.answer)


@dataclass(frozen=True, kw_only=True)
class Haystack(Record):
    """A yes-or-no question about one of many pictures."""

    question: str
    answer: str
    ctxs: list[str]

    def ask(self) -> Question:
        """The pictures, a line each, then the question."""
        return Question("\n".join([IMAGE_PLACEHOLDER] * len(self.ctxs)), self.question, self.ctxs, self.answer)


@dataclass(frozen=True, kw_only=True)
class Needle(Record):
    """A question about text and pictures among others."""

    question: str
    answer: str | int | list[object]
    ctxs: list[_Passage]
    image_list: list[str]
    needle_image_list: list[str] = field(default_factory=list)  # pictures of the question

    def ask(self) -> Question:
        """The passages, then the question with its pictures."""
        return Question(_join(self.ctxs), self.question, [*self.image_list, *self.needle_image_list], self.answer)


@dataclass(frozen=True, kw_only=True)
class CountedNeedle(Needle):
    """The answer is a list of counts."""

    def __post_init__(self) -> None:
        """Refuse other answers."""
        counts = self.answer
        if not isinstance(counts, list) or not counts or not all(type(count) is int for count in counts):
            raise DataError(f"the answer is {counts!r:.80}, expected a list of counts")


@dataclass(frozen=True, kw_only=True)
class PictureNeedle(Record):
    """Which of several pictures was among those of the context?"""

    question: str
    answer: int
    ctxs: list[_Passage]
    image_list: list[str]
    choices_image: list[str]

    def __post_init__(self) -> None:
        """Refuse an answer that no option has."""
        if not 0 <= self.answer < len(self.choices_image) <= len(ascii_uppercase):
            raise DataError(f"the answer is {self.answer}, expected the index of one of choices_image")

    def ask(self) -> Question:
        """The passages, then the question and a picture for every letter."""
        options = (f"\n{letter}. {IMAGE_PLACEHOLDER}" for letter in ascii_uppercase[: len(self.choices_image)])
        images = [*self.image_list, *self.choices_image]
        return Question(_join(self.ctxs), self.question + "".join(options), images, self.answer)


@dataclass(frozen=True)
class _Section:
    section_title: str
    paragraphs: list[str]


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """The pages of a document, to be summarised."""

    image_list: list[str]
    summary: str | list[object]  # a list of `_Section`

    def ask(self) -> Question:
        """The pages with their names and numbers."""
        if isinstance(self.summary, str):
            summary = self.summary
        else:
            sections = [parse_record(_Section, entry, place=("summary",)) for entry in self.summary]
            summary = "\n\n".join(f"{part.section_title}:\n" + "\n".join(part.paragraphs) for part in sections)
        heads = (f"Document {_name_document(page)} (page {_number_page(page)})" for page in self.image_list)
        return Question("\n\n".join(f"{head}: {IMAGE_PLACEHOLDER}" for head in heads), "", self.image_list, summary)


@dataclass(frozen=True, kw_only=True)
class DocumentQuestion(Record):
    """A question about a document of many pages."""

    doc_name: str
    question: str
    answer: str
    answer_format: str
    page_list: list[str]

    def __post_init__(self) -> None:
        """Refuse an answer of another format than the record says."""
        if self.answer_format not in FORMATS:
            raise DataError(f"answer_format is {self.answer_format!r}, expected one of {', '.join(FORMATS)}")
        if self.answer_format == "List":
            read_list(self.answer)

    def ask(self) -> Question:
        """The pages with the name of their document, then the question."""
        pages = (f"Document {_name_document(page)}: {IMAGE_PLACEHOLDER}" for page in self.page_list)
        question = f"Based on Document {self.doc_name:.{_NAME_LENGTH}}, answer the following question. {self.question}"
        answer = {"text": self.answer, "format": self.answer_format}
        return Question("\n\n".join(pages), question, self.page_list, answer)


@dataclass(frozen=True)
class _Example:
    image: str
    id: str | int  # what the label says


@dataclass(frozen=True)
class _Unknown:
    image: str
    answer: int


@dataclass(frozen=True)
class Domain:
    """One domain of a file of classes: lists of rounds of labelled pictures, and pictures to be classified."""

    exemplar_list: list[object]
    test_example: list[object]

    def read_rounds(self) -> list[list[list[_Example]]]:
        """The labelled pictures, by list and round. Raises DataError for anything else."""
        place = ("exemplar_list",)
        return [
            [[parse_record(_Example, entry, place=place) for entry in _as_list(one)] for one in _as_list(rounds)]
            for rounds in self.exemplar_list
        ]

    def read_unknown(self) -> list[_Unknown]:
        """The pictures to be classified. Raises DataError for anything else."""
        return [parse_record(_Unknown, entry, place=("test_example",)) for entry in self.test_example]


def draw_classes(domains: Mapping[str, Domain], *, seed: int, num: int) -> Iterator[Question]:
    """`num` pictures to be classified, each after one list of labelled pictures whose rounds are shuffled.

    The draws are those of the published code where it runs in one process. It uses eight, whose draws differ each time.
    """
    generator = random.Random(seed)
    rounds = {name: domain.read_rounds() for name, domain in domains.items()}
    unknown = [(name, entry) for name, domain in domains.items() for entry in domain.read_unknown()]
    generator.shuffle(unknown)
    for name, entry in unknown[:num]:
        if not rounds[name]:
            raise DataError(f"{name}.exemplar_list is empty, expected lists of labelled pictures")
        chosen = generator.choice(rounds[name])
        for one in chosen:
            generator.shuffle(one)
        examples = [example for one in chosen for example in one]
        context = "\n\n".join(f"{IMAGE_PLACEHOLDER}\nlabel: {example.id}" for example in examples)
        yield Question(context, IMAGE_PLACEHOLDER, [*(e.image for e in examples), entry.image], entry.answer)


def _as_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise DataError(f"exemplar_list holds a {type(value).__name__}, expected lists of rounds of pictures")
    return value


def _join(passages: list[_Passage]) -> str:
    return "\n\n".join(passage.text for passage in passages)


def _name_document(page: str) -> str:
    """The folder of a page, which is called like its document."""
    parts = page.split("/")
    if len(parts) < 2:
        raise DataError(f"{page!r:.80} lies in no folder, expected DOCUMENT/PAGE")
    return parts[-2][:_NAME_LENGTH]


def _number_page(page: str) -> str:
    parts = page.split("page")
    if len(parts) < 2:
        raise DataError(f"{page!r:.80} has no number, expected ..._pageN.jpg")
    return parts[1].partition(".")[0]
