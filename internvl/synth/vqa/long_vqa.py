"""Long questions about one picture among many, made of any set of questions about single pictures.

    python -m internvl.synth.vqa.long_vqa --annotation chartqa.jsonl --images chartqa --model CKPT --name chartqa \\
        --form paste --split val --lengths 16k-32k 32k-40k 56k-64k --num_samples 500 --out data/long_vqa

    image   every picture is a page of its own          "Page 7: <image>" ... "Look at page 7. What ...?"
    paste   several pictures on a canvas, with numbers  "<image>" ...          "Look at picture 7. What ...?"

    OUT/V2PE-Data/val/long_vqa_32k/val_long_vqa_NAME_16_32.jsonl          (train: annotation/ and train_long_vqa_...)
    OUT/V2PE-Data/image/long_vqa/{image,paste}/NAME/{train,val}/
    OUT/meta.json (train), OUT/datasheet.json, OUT/datasheet.md

These are the folders of V2PE's data: the benchmark longvqa reads OUT as --data-root (it expects documents under `image`
and photographs and charts under `paste`), training reads OUT/meta.json. Lengths are tokens of the whole document as the
trainer encodes it. Input lines have `image` and either `conversations` (its first question and answer) or `question`
and `answer`.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

from internvl.atomic import write_atomically
from internvl.data.records import is_unicode
from internvl.data.storage.media import load_image
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.command import make_parser, run_builder
from internvl.synth.corpus.documents import clean_text
from internvl.synth.corpus.lengths import (
    TOLERANCE,
    LengthRange,
    ModelReader,
    describe_reader,
    load_model_reader,
    parse_length,
)
from internvl.synth.datasheet import Sheet
from internvl.synth.folders import is_finished
from internvl.synth.miniature.vocabulary import SHORT_ANSWER_SENTENCE
from internvl.synth.parts import Part, Record, cut_parts, join_parts, make_parts, open_workspace
from internvl.synth.quality import Probe, contains_answer

BUILDER = "internvl.synth.vqa.long_vqa"
FORMAT = 2  # raised when the same arguments give other files
DATA = "V2PE-Data"
PICTURES_PER_CANVAS = 4
_CANVAS_SIDE = 896  # pixels
_LABEL_SHARE = 0.09  # of a cell's height
_QUALITY = 92  # of jpeg
_MAX_TRIES = 60  # pictures that are drawn for the room that is left
_YES_NO = ("yes", "no", "true", "false")

Form = Literal["image", "paste"]


@dataclass(frozen=True)
class LongVQASpec:
    """What is made.

    Attributes:
        annotation: jsonl of questions about single pictures.
        images: Folder that its picture paths are relative to.
        model: Checkpoint whose tokenizer and tiles count.
        name: Name of the set.
        form: One page per picture, or several on a canvas.
        split: Whose folders and file names to use.
        lengths: Ranges of tokens, a file each.
        num_samples: Samples per file.
        seed: Everything random follows from it.
        max_num: Tile limit per image; None: the checkpoint's.
    """

    annotation: Path
    images: Path
    model: Path
    name: str
    form: Form
    split: Literal["train", "val"]
    lengths: tuple[LengthRange, ...]
    num_samples: int
    seed: int = 0
    max_num: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ConfigError(f"name is {self.name!r}, expected small letters, digits and '_'")
        if not self.lengths or self.num_samples < 1:
            raise ConfigError("nothing to make; give --lengths and --num_samples 1 or more")
        if len({length.label for length in self.lengths}) < len(self.lengths):
            raise ConfigError("two --lengths are the same; remove one")

    def name_file(self, length: LengthRange) -> str:
        """Annotation file of a length, below the finished folder."""
        folder = f"long_vqa_{length.high / 1000:g}k"
        parent = "val" if self.split == "val" else "annotation"
        return f"{DATA}/{parent}/{folder}/{self.split}_long_vqa_{self.name}_{length.label}.jsonl"

    @property
    def image_root(self) -> str:
        """Folder of the pictures, below the finished folder."""
        return f"{DATA}/image/long_vqa/{self.form}/{self.name}/{self.split}"


@dataclass(frozen=True)
class Question:
    """A question about one picture."""

    image: str
    question: str
    answer: str


@dataclass(frozen=True)
class QuestionSet:
    """Usable questions and pictures.

    Attributes:
        questions: Those whose answer is not in the question.
        images: All pictures, each once.
        dropped: How many lines were left out, by cause.
    """

    questions: tuple[Question, ...]
    images: tuple[str, ...]
    dropped: Mapping[str, int]


def read_questions(annotation: Path, images: Path) -> QuestionSet:
    """Read and check a jsonl of questions about single pictures.

    Raises:
        ConfigError: No such file, or fewer than two pictures or no question left.
    """
    try:
        lines = annotation.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"annotation {annotation} cannot be read: {error}; check --annotation") from None
    dropped: Counter[str] = Counter()
    found: list[Question] = []
    readable: dict[str, bool] = {}
    for line in lines:
        if not line.strip():
            continue
        question = _read_question(line)
        if isinstance(question, str):
            dropped[question] += 1
            continue
        if question.image not in readable:
            readable[question.image] = _is_readable(images / question.image)
        if not readable[question.image]:
            dropped["picture cannot be read"] += 1
        elif _gives_itself_away(question):
            dropped["answer in the question"] += 1
        else:
            found.append(question)
    names = tuple(sorted(name for name, is_good in readable.items() if is_good))
    if not found or len(names) < 2:
        raise ConfigError(
            f"{annotation} has {len(found)} usable questions about {len(names)} pictures, expected at least 1 about 2; "
            f"left out: {dict(dropped)}; check --annotation and --images"
        )
    return QuestionSet(tuple(found), names, dict(dropped))


def _read_question(line: str) -> Question | str:
    """The question of a line, or why there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return "not json"
    image = record.get("image") if isinstance(record, dict) else None
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image:
        return "not about one picture"
    turns = record.get("conversations")
    if isinstance(turns, list):
        said = [(turn.get("from"), turn.get("value")) for turn in turns if isinstance(turn, dict)]
        pairs = [(first[1], second[1]) for first, second in pairwise(said) if (first[0], second[0]) == ("human", "gpt")]
        question, answer = pairs[0] if pairs else (None, None)
    else:
        question, answer = record.get("question"), record.get("answer")
        answer = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(question, str) or not isinstance(answer, str | int | float):
        return "no question and answer"
    if not is_unicode(f"{image}{question}{answer}"):
        return "half of a surrogate pair in it"
    cleaned = clean_text(question.replace(IMAGE_PLACEHOLDER, " ")).removesuffix(SHORT_ANSWER_SENTENCE).strip()
    return (
        Question(image, cleaned, str(answer).strip()) if cleaned and str(answer).strip() else "no question and answer"
    )


def _is_readable(path: Path) -> bool:
    try:
        load_image(path)
    except DataError:
        return False
    return True


def _gives_itself_away(question: Question) -> bool:
    return question.answer.lower() not in _YES_NO and contains_answer(question.question, question.answer)


@dataclass(frozen=True)
class _Materials:
    reader: ModelReader
    questions: QuestionSet


@cache
def load_materials(spec: LongVQASpec) -> _Materials:
    """Read questions and model, once per process."""
    return _Materials(load_model_reader(spec.model, spec.max_num), read_questions(spec.annotation, spec.images))


def build_long_vqa(out: Path, spec: LongVQASpec, *, num_workers: int = 0, overwrite: bool = False) -> bool:
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
        if spec.form == "image":
            for name in load_materials(spec).questions.images:
                _copy_page(spec, name, folder / spec.image_root)
        files = {spec.name_file(length): spec.num_samples for length in spec.lengths}
        parts = cut_parts(files, samples_per_part=16)
        make_parts(folder, parts, partial(make_sample, spec, folder), num_workers=num_workers, label="long_vqa")
        _finish(folder, spec, parts, arguments)
    return True


def describe_arguments(spec: LongVQASpec) -> dict[str, Any]:
    """Everything that the files follow from, as JSON values."""
    described = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(spec).items()}
    try:
        digest = sha256(spec.annotation.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"annotation {spec.annotation} cannot be read: {error}; check --annotation") from None
    facts = {"format": FORMAT, **described, "annotation_sha256": digest}
    result: dict[str, Any] = json.loads(
        json.dumps(facts | describe_reader(load_model_reader(spec.model, spec.max_num)))
    )
    return result


def _page_name(image: str) -> str:
    """A flat file name that differs where paths differ."""
    return f"{sha256(image.encode()).hexdigest()[:12]}{Path(image).suffix.lower()}"


def _copy_page(spec: LongVQASpec, image: str, root: Path) -> None:
    target = root / _page_name(image)
    if not target.is_file():
        write_atomically(target, (spec.images / image).read_bytes())


def make_sample(spec: LongVQASpec, folder: Path, part: Part, number: int) -> Record:
    """One sample; its canvases are written on the way.

    Raises:
        ConfigError: The pictures are too large for the length.
    """
    length = next(length for length in spec.lengths if spec.name_file(length) == part.file)
    materials = load_materials(spec)
    name = f"{spec.name}-{length.label}-{number:06d}"
    rng = Random(f"{spec.seed}/{spec.split}/{name}")
    for _ in range(_MAX_TRIES):
        question = rng.choice(materials.questions.questions)
        target = length.draw(rng)
        pages = _choose_pages(spec, materials, question, target, length, rng)
        if pages is None:
            continue
        asked = min(int((number % 10 + rng.random()) / 10 * len(pages)), len(pages) - 1)  # every tenth equally often
        pages.insert(asked, pages.pop(0))
        record = _write_sample(spec, folder, name, question, pages, asked)
        tokens = materials.reader.count_record(record, folder / spec.image_root)
        if min(length.low, (1 - TOLERANCE) * length.high) <= tokens <= length.high:
            record["metadata"]["context_length"] = tokens
            return record
    raise ConfigError(
        f"no sample of {length.low} to {length.high} tokens can be made of these pictures; ask for a wider range, "
        "longer samples, or a smaller --max_dynamic_patch"
    )


def _choose_pages(
    spec: LongVQASpec, materials: _Materials, question: Question, target: int, length: LengthRange, rng: Random
) -> list[str] | None:
    """The asked picture first, then distractors, until there is no room left; None when it is too large itself."""
    room = target - _count_frame(spec, materials, question)
    others = [image for image in materials.questions.images if image != question.image]
    pages = [question.image]
    if spec.form == "paste":
        visual = (
            materials.reader.count_tiles(_CANVAS_SIDE, _CANVAS_SIDE) * materials.reader.encoder.text.num_image_token
        )
        size = visual + _count_label(materials.reader, "")
        num_canvases = max(room // size, 1)
        num_pictures = num_canvases * PICTURES_PER_CANVAS - rng.randrange(PICTURES_PER_CANVAS)
        return pages + _draw_many(others, num_pictures - 1, rng)
    sizes = _sizes(spec)
    label = _count_label(materials.reader, "Page 999: ")
    room -= sizes[question.image] + label
    if room < 0:
        return None
    supply: list[str] = []
    num_refused = 0
    while num_refused < _MAX_TRIES:
        if not supply:
            supply = rng.sample(others, len(others))
        image = supply.pop()
        if sizes[image] + label <= room:
            pages.append(image)
            room -= sizes[image] + label
            num_refused = 0
        else:
            num_refused += 1
    return pages


@cache
def _sizes(spec: LongVQASpec) -> dict[str, int]:
    """Visual tokens of every picture as a page."""
    materials = load_materials(spec)
    return {image: materials.reader.count_image(spec.images / image) for image in materials.questions.images}


def _draw_many(values: Sequence[str], number: int, rng: Random) -> list[str]:
    """`number` values; none comes again before all others came."""
    drawn: list[str] = []
    while len(drawn) < number:
        drawn += rng.sample(values, len(values))
    return drawn[:number]


def _count_frame(spec: LongVQASpec, materials: _Materials, question: Question) -> int:
    """Tokens of template, question and answer."""
    turns = [
        {"from": "human", "value": _write_question(spec, question, 999)},
        {"from": "gpt", "value": question.answer},
    ]
    return materials.reader.count_record({"conversations": turns}, Path())


def _count_label(reader: ModelReader, label: str) -> int:
    """Tokens of a page's line without its visual tokens."""
    return reader.count_text(f"{label}{IMAGE_PLACEHOLDER}\n")


def _write_question(spec: LongVQASpec, question: Question, number: int) -> str:
    noun = "page" if spec.form == "image" else "picture"
    return f"Look at {noun} {number}. {question.question}\n{SHORT_ANSWER_SENTENCE}"


def _write_sample(
    spec: LongVQASpec, folder: Path, name: str, question: Question, pages: Sequence[str], asked: int
) -> Record:
    if spec.form == "image":
        images = [_page_name(image) for image in pages]
        context = "".join(f"Page {number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, len(pages) + 1))
        index = asked
    else:
        images = _write_canvases(spec, folder, name, pages)
        context = f"{IMAGE_PLACEHOLDER}\n" * len(images)
        index = asked // PICTURES_PER_CANVAS
    turns = [
        {"from": "human", "value": context + _write_question(spec, question, asked + 1)},
        {"from": "gpt", "value": question.answer},
    ]
    facts = {
        "context_length": 0,
        "num_pictures": len(pages),
        "asked_picture": asked + 1,
        "asked_image": index,
        "placed_depth": round(asked / max(len(pages) - 1, 1), 6),
        "source_image": question.image,
    }
    return {"id": name, "image": images, "conversations": turns, "metadata": facts}


def _write_canvases(spec: LongVQASpec, folder: Path, name: str, pages: Sequence[str]) -> list[str]:
    names = []
    for first in range(0, len(pages), PICTURES_PER_CANVAS):
        group = [load_image(spec.images / image) for image in pages[first : first + PICTURES_PER_CANVAS]]
        buffer = BytesIO()
        draw_canvas(group, first + 1).save(buffer, format="JPEG", quality=_QUALITY)
        names.append(f"{name}/{first // PICTURES_PER_CANVAS:04d}.jpg")
        write_atomically(folder / spec.image_root / names[-1], buffer.getvalue())
    return names


def draw_canvas(pictures: Sequence[Image.Image], first_number: int, *, side: int = _CANVAS_SIDE) -> Image.Image:
    """Up to four RGB pictures on a white square, two by two, each with `Picture N` above it."""
    canvas = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas)
    cell = side // 2
    label = round(_LABEL_SHARE * cell)
    font = ImageFont.load_default(size=0.8 * label)
    for index, picture in enumerate(pictures):
        left, top = index % 2 * cell, index // 2 * cell
        scale = min((cell - 4) / picture.width, (cell - label - 4) / picture.height)
        size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
        canvas.paste(picture.resize(size, Image.Resampling.BICUBIC), (left + 2, top + label))
        draw.text((left + 4, top), f"Picture {first_number + index}", fill="black", font=font)
    return canvas


def _finish(folder: Path, spec: LongVQASpec, parts: Sequence[Part], arguments: Mapping[str, Any]) -> None:
    sheet = Sheet()
    ranges = {spec.name_file(length): length for length in spec.lengths}
    for file, record in join_parts(folder, parts):
        facts = record["metadata"]
        shown_once = record["image"].count(record["image"][facts["asked_image"]]) == 1
        sheet.checks["asked_pictures_that_are_shown_once"] += shown_once
        sheet.checks["answers_that_are_not_in_the_question"] += 1
        sheet.note(
            file,
            length=facts["context_length"],
            asked=ranges[file],
            depths=[facts["placed_depth"]],
            probe=probe_record(record, file),
        )
    if spec.split == "train":
        _write_meta(folder, spec)
    questions = load_materials(spec).questions
    notes = [
        f"{len(questions.questions)} questions about {len(questions.images)} pictures, form `{spec.form}`",
        *(f"left out: {number} x {cause}" for cause, number in sorted(questions.dropped.items())),
    ]
    sheet.write(folder, title=f"long_vqa_{spec.name}", builder=BUILDER, arguments=arguments, notes=notes)


def probe_record(record: Record, file: str) -> Probe:
    """What shortcuts say to a sample.

    By luck the first image is the asked one in one sample of as many as there are images.
    """
    facts, gold = record["metadata"], record["conversations"][1]["value"]
    sees_it = facts["asked_image"] == 0
    guesses = {"text only": None, "first image only": gold if sees_it else None}
    return Probe(Path(file).stem, gold, None, guesses, {"first image only": 1 / len(record["image"])})


def _write_meta(folder: Path, spec: LongVQASpec) -> None:
    max_num = load_materials(spec).reader.max_num
    meta = {
        Path(spec.name_file(length)).stem: {
            "root": spec.image_root,
            "annotation": spec.name_file(length),
            "data_augment": False,
            "repeat_time": 1,
            "max_dynamic_patch": max_num,
            "dynamic_image_size": max_num > 1,
            "length": spec.num_samples,
        }
        for length in spec.lengths
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(BUILDER, __doc__)
    add = parser.add_argument
    add("--annotation", type=Path, required=True, help="jsonl of questions about single pictures")
    add("--images", type=Path, required=True, help="folder that its picture paths are relative to")
    add("--name", required=True, help="name of the set, such as chartqa")
    add("--form", choices=("image", "paste"), default="image", help="see above (default: %(default)s)")
    add("--split", choices=("train", "val"), default="train", help="what it is for (default: %(default)s)")
    add("--lengths", type=parse_length, nargs="+", required=True, metavar="LOW-HIGH", help="tokens, such as 16k-32k")
    add("--num_samples", type=int, default=100, help="samples per range (default: %(default)s)")
    return parser


def read_spec(arguments: argparse.Namespace) -> LongVQASpec:
    """The data set that a command line asks for."""
    return LongVQASpec(
        annotation=arguments.annotation,
        images=arguments.images,
        model=arguments.model,
        name=arguments.name,
        form=arguments.form,
        split=arguments.split,
        lengths=tuple(arguments.lengths),
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        max_num=arguments.max_dynamic_patch,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_builder(build_parser(), argv, read_spec, build_long_vqa)


if __name__ == "__main__":
    sys.exit(main())
