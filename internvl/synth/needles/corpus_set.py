"""Multimodal needles in long contexts of any corpus: training files and test items in MM-NIAH's form.

    OUT/meta.json                                        the training files, for --meta_path
    OUT/annotation/train_long_mr_NEEDLE_KIND_LOW_HIGH.jsonl
    OUT/image/corpus/  OUT/image/needle/                 images of the training samples
    OUT/MM-NIAH/mm_niah_test/annotations/KIND-NEEDLE.jsonl     all lengths of a task, for --data-root OUT
    OUT/MM-NIAH/mm_niah_test/images/{corpus,needle}/
    OUT/datasheet.json, OUT/datasheet.md

Length. A training document has the asked tokens with template, question and answer. Of a test item the context has them
to 1 %, and the whole prompt too, unless the question itself is longer than 1 % (options that are images).
Depth. What is asked for stands in every tenth of the contexts equally often; of an answer that follows from several
needles, the mean of their depths does.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from io import BytesIO
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, Literal

from internvl.atomic import write_atomically
from internvl.data.storage.media import load_image, read_image_size
from internvl.errors import ConfigError
from internvl.synth.corpus.documents import Corpus, ImageBlock, TextBlock, describe_corpus, read_corpus, split_corpus
from internvl.synth.corpus.lengths import TOLERANCE, LengthRange, ModelReader, describe_reader, load_model_reader
from internvl.synth.datasheet import Sheet
from internvl.synth.folders import is_finished
from internvl.synth.needles.cards import MIN_SIDE, OPTION_SIDE, Card, draw_card, paste_card
from internvl.synth.needles.haystacks import LongContext, Piece, PieceCounter, build_long_context, repeat_forever
from internvl.synth.needles.riddles import TASKS, Form, Riddle, Split, draw_riddle, write_answer, write_question
from internvl.synth.parts import Part, Record, cut_parts, join_parts, make_parts, open_workspace
from internvl.synth.quality import Probe, contains_answer, count_words

BUILDER = "internvl.synth.needles.long_mr"
FORMAT = 1  # raised when the same arguments give other files
ANNOTATIONS, IMAGES = "MM-NIAH/mm_niah_test/annotations", "MM-NIAH/mm_niah_test/images"
_MAX_TRIES = 20
_TOKENS_PER_PART = 1_000_000
_QUALITY = 92  # of jpeg

AnswerForm = Literal["free", "choice", "both"]


@dataclass(frozen=True)
class CorpusSetSpec:
    """The whole data set.

    Attributes:
        corpus: Folder of texts and images.
        model: Checkpoint whose tokenizer and tiles count.
        seed: Everything random follows from it.
        tasks: `KIND-NEEDLE`, of `riddles.TASKS`.
        train_lengths: Lengths of training documents.
        num_train: Samples per task and length.
        test_lengths: Lengths of test contexts.
        num_test: Items per task and length.
        depths: Wanted depths, in turn; empty: spread evenly over tenths.
        num_needles: Needles per context, those that are not asked for included.
        answers: Free answers, choice among four, or both in turn; counting is always free.
        image_share: Share of visual tokens up to which images are put between paragraphs.
        test_share: Share of the corpus that is for testing, if both are made.
        max_num: Tile limit per image; None: the checkpoint's.
    """

    corpus: Path
    model: Path
    seed: int
    tasks: tuple[str, ...]
    train_lengths: tuple[LengthRange, ...] = ()
    num_train: int = 0
    test_lengths: tuple[LengthRange, ...] = ()
    num_test: int = 0
    depths: tuple[float, ...] = ()
    num_needles: int = 3
    answers: AnswerForm = "both"
    image_share: float = 0.5
    test_share: float = 0.2
    max_num: int | None = None

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
    def files(self) -> dict[str, int]:
        """Number of samples by file."""
        train = {f: self.num_train for task in self.tasks for f in (_name_train(task, r) for r in self.train_lengths)}
        test = {f"{ANNOTATIONS}/{task}.jsonl": self.num_test * len(self.test_lengths) for task in self.tasks}
        return {file: number for file, number in {**train, **test}.items() if number > 0}

    @property
    def splits(self) -> tuple[Split, ...]:
        """Which of both is made."""
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
class _Order:
    """Which sample: what its file and number mean."""

    split: Split
    task: str
    length: LengthRange
    number: int
    name: str


def read_order(spec: CorpusSetSpec, file: str, number: int) -> _Order:
    """What sample `number` of a file shall be."""
    for task in spec.tasks:
        if file == f"{ANNOTATIONS}/{task}.jsonl":
            which, of_length = divmod(number, spec.num_test)
            length = spec.test_lengths[which]
            return _Order("test", task, length, of_length, f"{task}-{length.label}k-{of_length:05d}")
        for length in spec.train_lengths:
            if file == _name_train(task, length):
                return _Order("train", task, length, number, f"train-{task}-{length.label}k-{number:06d}")
    raise ConfigError(f"{file} is no file of this data set")


@dataclass(frozen=True)
class _Materials:
    """What samples of a split are made of.

    Attributes:
        reader: Counts.
        counter: Counts.
        corpus: Texts and images.
        names: Path of a corpus image below the split's image folder.
        sizes: Its visual tokens.
        carriers: Images that can carry a card.
    """

    reader: ModelReader
    counter: PieceCounter
    corpus: Corpus
    names: Mapping[str, str]
    sizes: Mapping[str, int]
    carriers: tuple[str, ...]


@cache
def load_materials(spec: CorpusSetSpec, split: Split) -> _Materials:
    """Read corpus and model, once per process.

    Raises:
        ConfigError: The corpus does not do.
        CheckpointError: The model does not.
    """
    reader = load_model_reader(spec.model, spec.max_num)
    corpus = read_corpus(spec.corpus)
    if len(spec.splits) == 2:
        parts = dict(
            zip(("train", "test"), split_corpus(corpus, test_share=spec.test_share, seed=spec.seed), strict=True)
        )
        corpus = parts[split]
    paths = corpus.images
    carriers = tuple(path for path in paths if min(read_image_size(spec.corpus / path)) >= MIN_SIDE)
    if spec.has_image_tasks and not carriers:
        raise ConfigError(
            f"the {split} part of corpus {spec.corpus} has no image of at least {MIN_SIDE} x {MIN_SIDE} pixels that "
            "can carry a needle; add some, or ask for --tasks with text needles"
        )
    names = {path: f"corpus/{index:06d}{Path(path).suffix.lower()}" for index, path in enumerate(paths)}
    sizes = {path: reader.count_image(spec.corpus / path) for path in paths}
    return _Materials(reader, PieceCounter(reader), corpus, names, sizes, carriers)


def build_corpus_set(out: Path, spec: CorpusSetSpec, *, num_workers: int = 0, overwrite: bool = False) -> bool:
    """Make the data set in the folder `out`.

    Returns:
        False when it was there already.

    Raises:
        DataError: Something is in the way that may not be replaced.
        ConfigError: The spec cannot be met.
    """
    arguments = describe_arguments(spec)
    if is_finished(out, BUILDER, arguments):
        return False
    with open_workspace(out, BUILDER, arguments, overwrite=overwrite) as folder:
        for split in spec.splits:
            _copy_images(spec, split, folder)
        longest = max(length.high for length in (*spec.train_lengths, *spec.test_lengths))
        parts = cut_parts(spec.files, samples_per_part=min(max(_TOKENS_PER_PART // longest, 1), 64))
        make_parts(folder, parts, partial(make_sample, spec, folder), num_workers=num_workers, label="long_mr")
        _finish(folder, spec, parts, arguments)
    return True


def describe_arguments(spec: CorpusSetSpec) -> dict[str, Any]:
    """Everything that the files follow from, as JSON values."""
    described = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(spec).items()}
    reader = load_model_reader(spec.model, spec.max_num)
    facts = {"format": FORMAT, **described, "corpus_sha256": describe_corpus(spec.corpus), **describe_reader(reader)}
    result: dict[str, Any] = json.loads(json.dumps(facts))
    return result


def _image_folder(folder: Path, split: Split) -> Path:
    return folder / ("image" if split == "train" else IMAGES)


def _copy_images(spec: CorpusSetSpec, split: Split, folder: Path) -> None:
    for path, name in load_materials(spec, split).names.items():
        target = _image_folder(folder, split) / name
        if not target.is_file():
            write_atomically(target, (spec.corpus / path).read_bytes())


def make_sample(spec: CorpusSetSpec, folder: Path, part: Part, number: int) -> Record:
    """One sample; its needle images are written on the way.

    Raises:
        ConfigError: It cannot be made.
    """
    order = read_order(spec, part.file, number)
    materials = load_materials(spec, order.split)
    rng = Random(f"{spec.seed}/{order.name}")
    for _ in range(_MAX_TRIES):
        riddle = _draw_riddle(spec, order, rng)
        images = _write_images(materials, riddle, spec, order, _image_folder(folder, order.split), rng)
        needles = [
            Piece(text=needle) if isinstance(needle, str) else images.needles[index]
            for index, needle in enumerate(riddle.needles)
        ]
        length = order.length.draw(rng)
        question = write_question(riddle)
        context = build_long_context(
            draw_filler(materials, spec.image_share, rng, starts_with_image=order.task.endswith("-image")),
            needles,
            draw_depths(spec, order.number, riddle, rng),
            num_tokens=_context_tokens(length, order, riddle, question, images.options, materials, folder),
            counter=materials.counter,
            num_leading=1 if order.task.endswith("-image") else 0,
        )
        flaw = find_flaw(context, riddle, needles)
        if flaw is None:
            record = _write_record(order, context, riddle, needles, images.options, length)
            if order.split == "train":
                root = _image_folder(folder, order.split)
                record["metadata"]["document_length"] = materials.reader.count_record(record, root)
            return record
    raise ConfigError(f"sample {order.name} cannot be made of this corpus: {flaw}; add other texts to it")


def _draw_riddle(spec: CorpusSetSpec, order: _Order, rng: Random) -> Riddle:
    form: Form = "choice" if spec.answers == "choice" or (spec.answers == "both" and order.number % 2) else "free"
    turn, place = divmod(order.number // 2 if spec.answers == "both" else order.number, 4)
    right = Random(f"{spec.seed}/{order.task}/{order.length.label}/{turn}").sample(range(4), 4)[place]
    return draw_riddle(order.task, form, num_needles=spec.num_needles, split=order.split, right=right, rng=rng)


def draw_depths(spec: CorpusSetSpec, number: int, riddle: Riddle, rng: Random) -> list[float]:
    """Wanted depth of every needle; the asked ones have the sample's depth as their mean, in their order."""
    tenth = (number % 10 + number // 10) % 10
    mean = spec.depths[number % len(spec.depths)] if spec.depths else (tenth + rng.random()) / 10
    offsets = sorted(rng.uniform(-1, 1) for _ in riddle.asked)
    middle = sum(offsets) / len(offsets)
    largest = max(max(abs(offset - middle) for offset in offsets), 1e-9)
    room = min(mean, 1 - mean)
    asked = iter(mean + room * (offset - middle) / largest if len(offsets) > 1 else mean for offset in offsets)
    return [next(asked) if index in riddle.asked else rng.random() for index in range(len(riddle.needles))]


@dataclass(frozen=True)
class _NeedleImages:
    """Needle images by number of the needle, and paths of the options."""

    needles: Mapping[int, Piece]
    options: tuple[str, ...]


def _write_images(
    materials: _Materials, riddle: Riddle, spec: CorpusSetSpec, order: _Order, folder: Path, rng: Random
) -> _NeedleImages:
    needles = {}
    share = order.length.low // (4 * len(riddle.needles))
    for index, needle in enumerate(riddle.needles):
        if isinstance(needle, Card):
            drawn = rng.choices(materials.carriers, k=8)
            smallest = min(drawn, key=lambda path: materials.sizes[path])
            carrier = next((path for path in drawn if materials.sizes[path] <= share), smallest)
            image = paste_card(load_image(spec.corpus / carrier), needle, rng)
            name = f"needle/{order.name}-{index}.jpg"
            _save(image, folder / name)
            needles[index] = Piece(image=name, num_visual=materials.sizes[carrier])
    options = []
    for index, option in enumerate(riddle.options):
        if isinstance(option, Card):
            name = f"needle/{order.name}-option{index}.jpg"
            _save(draw_card(option, OPTION_SIDE), folder / name)
            options.append(name)
    return _NeedleImages(needles, tuple(options))


def _save(image: Any, path: Path) -> None:
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    write_atomically(path, buffer.getvalue())


def draw_filler(
    materials: _Materials, image_share: float, rng: Random, *, starts_with_image: bool = False
) -> Iterator[Piece]:
    """Pieces of the corpus without end: documents in random order, loose images between paragraphs."""
    counter, paths = materials.counter, materials.corpus.images

    def show(path: str) -> Piece:
        return Piece(image=materials.names[path], num_visual=materials.sizes[path])

    if starts_with_image:
        yield show(min(rng.choices(materials.carriers, k=4), key=lambda path: materials.sizes[path]))
    num_visual = num_text = 0

    def read_through() -> Iterator[Piece]:
        nonlocal num_visual, num_text
        for document in rng.sample(materials.corpus.documents, len(materials.corpus.documents)):
            for block in document.blocks:
                if isinstance(block, ImageBlock):
                    piece = show(block.path)
                    num_visual += piece.num_visual
                    yield piece
                    continue
                assert isinstance(block, TextBlock)
                piece = Piece(text=block.text)
                num_text += counter.count_alone(piece)
                yield piece
                if paths and num_visual < image_share * (num_visual + num_text):
                    extra = show(rng.choice(paths))
                    num_visual += extra.num_visual
                    yield extra

    yield from repeat_forever(read_through)


def _context_tokens(
    length: int,
    order: _Order,
    riddle: Riddle,
    question: str,
    options: Sequence[str],
    materials: _Materials,
    folder: Path,
) -> int:
    """Tokens that the context shall have, see the module's docstring."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": write_answer(riddle)}]
    record = {"image": list(options), "conversations": turns}
    overhead = materials.reader.count_record(record, _image_folder(folder, order.split))
    if order.split == "train":
        return length - overhead
    return max(length - overhead, ceil(length * (1 - 0.75 * TOLERANCE)))


def find_flaw(context: LongContext, riddle: Riddle, needles: Sequence[Piece]) -> str | None:
    """Why a sample will not do; None if it will."""
    text = context.text
    for needle in needles:
        number = context.images.count(needle.image) if needle.image else text.count(needle.content)
        if number != 1:
            return f"the needle {needle.content!r} stands in the context {number} times, expected once"
    if isinstance(riddle.answer, str) and riddle.task.endswith("-text"):
        number = count_words(text, riddle.answer)
        if number != 1:
            return f"the answer {riddle.answer!r} stands in the context {number} times, expected once"
    is_open = isinstance(riddle.answer, str) and not _is_image_choice(riddle)
    if is_open and contains_answer(riddle.question, str(riddle.answer)):
        return f"the answer {riddle.answer!r} stands in the question"
    return None


def _is_image_choice(riddle: Riddle) -> bool:
    return bool(riddle.options) and isinstance(riddle.options[0], Card)


def _write_record(
    order: _Order, context: LongContext, riddle: Riddle, needles: Sequence[Piece], options: Sequence[str], length: int
) -> Record:
    depths = [round(context.depths[index], 6) for index in riddle.asked]
    facts = {
        "placed_depth": depths[0] if len(depths) == 1 else depths,
        "context_length": context.num_tokens,
        "context_length_text": context.num_text,
        "context_length_image": context.num_visual,
        "num_images": len(context.images),
        "needles": [needles[index].image or needles[index].text for index in riddle.asked],
        "hidden": [needle.image or needle.text for needle in needles],
        "chance": riddle.chance,
        "asked_length": length,
    }
    if order.split == "train":
        turns = [
            {"from": "human", "value": context.text + write_question(riddle)},
            {"from": "gpt", "value": write_answer(riddle)},
        ]
        return {"id": order.name, "image": [*context.images, *options], "conversations": turns, "metadata": facts}
    texts = [option for option in riddle.options if isinstance(option, str)]
    return {
        "id": order.name,
        "images_list": context.images,
        "context": context.text,
        "question": riddle.question,
        "answer": riddle.gold,
        "meta": {**facts, "choices": texts or None, "choices_image_path": list(options) or None},
    }


def _finish(folder: Path, spec: CorpusSetSpec, parts: Sequence[Part], arguments: Mapping[str, Any]) -> None:
    sheet = Sheet()
    numbers: Counter[str] = Counter()
    for file, record in join_parts(folder, parts):
        _note(sheet, read_order(spec, file, numbers[file]), file, record)
        numbers[file] += 1
    if "train" in spec.splits:
        _write_meta(folder, spec)
    corpora = {split: load_materials(spec, split).corpus for split in spec.splits}
    notes = [
        f"{split}: {len(corpus.documents)} documents, {len(corpus.images)} images" for split, corpus in corpora.items()
    ]
    problems = read_corpus(spec.corpus).problems
    notes += [f"left out of the corpus: {problem}" for problem in problems[:20]]
    notes += [f"and {len(problems) - 20} more"] * (len(problems) > 20)
    title = "Multimodal needles in long contexts"
    sheet.write(folder, title=title, builder=BUILDER, arguments=arguments, notes=notes)


def _note(sheet: Sheet, order: _Order, file: str, record: Record) -> None:
    is_test = "meta" in record
    facts = record["meta" if is_test else "metadata"]
    depth = facts["placed_depth"]
    depths = depth if isinstance(depth, list) else [depth]
    sheet.checks["needles_that_stand_once"] += len(facts["needles"])
    sheet.checks["answers_that_are_not_in_the_question"] += 1
    if is_test:
        length, probe = facts["context_length"], probe_item(record, order.task)
    else:
        length = facts["document_length"]
        probe = _probe_training(record, order.task)
    sheet.note(file, length=length, asked=order.length, depths=[sum(depths) / len(depths)], probe=probe)


def probe_item(record: Record, task: str) -> Probe:
    """What shortcuts say to an item in MM-NIAH's form."""
    meta = record["meta"]
    gold = json.dumps(record["answer"])
    options = meta.get("choices") or []
    form = "choice" if isinstance(record["answer"], int) else "free"
    seen = [index for index, option in enumerate(options) if contains_answer(record["context"], str(option))]
    guesses: dict[str, str | None] = {"question only": None}
    expected: dict[str, float] = {}
    if task.endswith("-image"):
        guesses["text only"] = json.dumps(seen[0]) if len(seen) == 1 else None
        guesses["first image only"] = gold if record["images_list"][:1] == meta["needles"] else None
    return Probe(f"{task}, {form}", gold, meta.get("chance"), guesses, expected)


def _probe_training(record: Record, task: str) -> Probe:
    facts = record["metadata"]
    gold = record["conversations"][1]["value"]
    form = "choice" if len(gold) == 1 and gold.isalpha() else "free"
    guesses: dict[str, str | None] = {"question only": None}
    if task.endswith("-image"):
        guesses["first image only"] = gold if record["image"][:1] == facts["needles"] else None
    return Probe(f"training, {task}, {form}", gold, facts["chance"], guesses, {})


def _write_meta(folder: Path, spec: CorpusSetSpec) -> None:
    max_num = load_materials(spec, "train").reader.max_num
    meta = {
        Path(file).stem: {
            "root": "image",
            "annotation": file,
            "data_augment": False,
            "repeat_time": 1,
            "max_dynamic_patch": max_num,
            "dynamic_image_size": max_num > 1,
            "length": number,
        }
        for file, number in spec.files.items()
        if file.startswith("annotation/")
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
