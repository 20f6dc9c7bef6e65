"""The spec of a set of needles in a corpus: its files, and what each sample of a file is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from internvl.errors import ConfigError
from internvl.synth.forms import ITEM_IMAGES, ITEMS, Split
from internvl.synth.lengths import LengthRange
from internvl.synth.needles.quizzes import TASKS

AnswerForm = Literal["free", "choice", "both"]


@dataclass(frozen=True)
class NeedleSpec:
    """The whole data set."""

    corpus: Path  # folder of texts and images
    model: Path  # checkpoint whose tokenizer and tiles count
    seed: int
    tasks: tuple[str, ...]  # `KIND-NEEDLE`, of `quizzes.TASKS`
    train_lengths: tuple[LengthRange, ...] = ()  # lengths of training documents
    num_train: int = 0  # samples per task and length
    test_lengths: tuple[LengthRange, ...] = ()  # lengths of test contexts
    num_test: int = 0  # items per task and length
    depths: tuple[float, ...] = ()  # wanted depths, in turn; empty: spread evenly over tenths
    num_needles: int = 3  # needles per context, those that are not asked for included
    answers: AnswerForm = "both"  # free answers, choice among four, or both in turn; counting is always free
    image_share: float = 0.5  # share of visual tokens up to which images are put between paragraphs
    test_share: float = 0.2  # share of the corpus that is for testing, if both are made
    max_num: int | None = None  # tile limit per image; None: the checkpoint's

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigError(f"unknown task {task!r}; expected some of {', '.join(TASKS)}")
        if not self.tasks or not self.files:
            raise ConfigError("nothing to make; give --train_lengths or --test_lengths, --tasks, and numbers above 0")
        if len(set(self.files)) < len(self.train_lengths) * len(self.tasks) * bool(self.num_train):
            raise ConfigError("two --train_lengths have the same name; join them")
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise ConfigError(f"depths are {self.depths}, expected shares of the context, 0 to 1")
        for name, share in (("image_share", self.image_share), ("test_share", self.test_share)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} is {share}, expected at least 0 and less than 1")

    @property
    def train_files(self) -> dict[str, int]:
        """Number of samples by training file."""
        files = [_name_train(task, length) for task in self.tasks for length in self.train_lengths]
        return dict.fromkeys(files, self.num_train) if self.num_train > 0 else {}

    @property
    def files(self) -> dict[str, int]:
        """Number of samples by file."""
        num_items = self.num_test * len(self.test_lengths)
        items = {f"{ITEMS}/{task}.jsonl": num_items for task in self.tasks} if num_items > 0 else {}
        return {**self.train_files, **items}

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are made."""
        has_train = bool(self.train_lengths) and self.num_train > 0
        has_test = bool(self.test_lengths) and self.num_test > 0
        return (*(("train",) if has_train else ()), *(("test",) if has_test else ()))

    @property
    def has_image_tasks(self) -> bool:
        """Whether cards are hidden in pictures."""
        return any(task.endswith("-image") for task in self.tasks)


def _name_train(task: str, length: LengthRange) -> str:
    kind, needle = task.split("-")
    return f"annotation/train_long_mr_{needle}_{kind}_{length.label}.jsonl"


@dataclass(frozen=True)
class SampleSpec:
    """The properties of one sample."""

    split: Split  # whose corpus and names it has
    task: str  # `KIND-NEEDLE`
    length: LengthRange
    number: int  # among the samples of this task and length
    name: str  # its id in the file

    @property
    def has_image_needles(self) -> bool:
        """Whether its needles are cards in pictures."""
        return self.task.endswith("-image")

    @property
    def image_root(self) -> str:
        """Folder that its image paths are relative to, below the finished folder."""
        return find_image_root(self.split)


def find_image_root(split: Split) -> str:
    """Image folder of a split, below the finished folder."""
    return "image" if split == "train" else ITEM_IMAGES


def read_sample_spec(spec: NeedleSpec, file: str, number: int) -> SampleSpec:
    """The spec of sample `number` of a file."""
    for task in spec.tasks:
        if file == f"{ITEMS}/{task}.jsonl":
            which, of_length = divmod(number, spec.num_test)
            length = spec.test_lengths[which]
            return SampleSpec("test", task, length, of_length, f"{task}-{length.label}k-{of_length:05d}")
        for length in spec.train_lengths:
            if file == _name_train(task, length):
                return SampleSpec("train", task, length, number, f"train-{task}-{length.label}k-{number:06d}")
    raise ConfigError(f"{file} is no file of this data set")
