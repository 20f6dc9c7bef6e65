"""Long questions about one picture among many: which pictures a sample shows, in which form, at which length.

The distractors are the other pictures of the question set, so nothing but the number of the asked picture leads to it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Literal

from internvl.data.storage.media import load_image
from internvl.errors import ConfigError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.datasheet import Sheet
from internvl.synth.folders import Origin, digest_annotation
from internvl.synth.forms import Record, describe_source, write_meta, write_turns
from internvl.synth.images import copy_images, write_jpeg
from internvl.synth.lengths import TOLERANCE, LengthRange
from internvl.synth.model_reader import ModelReader, load_model_reader
from internvl.synth.parts import Recipe, build_in_parts
from internvl.synth.questions import SHORT_ANSWER_SENTENCE
from internvl.synth.shortcuts import Probe
from internvl.synth.vqa.canvas import CANVAS_SIDE, PICTURES_PER_CANVAS, draw_canvas
from internvl.synth.vqa.picture_questions import PictureQuestion, QuestionSet, read_questions

BUILDER = "internvl.synth.vqa"
FORMAT = 2  # raised when the same arguments give other files
DATA = "V2PE-Data"
_MAX_TRIES = 60  # pictures that are drawn for the room that is left
_MOST_PAGES = 999  # whose number is counted in advance

Form = Literal["image", "paste"]


@dataclass(frozen=True)
class LongVQASpec:
    """The question set, and how its pictures are shown."""

    annotation: Path  # jsonl of questions about single pictures
    images: Path  # folder that its picture paths are relative to
    model: Path  # checkpoint whose tokenizer and tiles count
    name: str  # of the set, for folders and files
    form: Form  # one page per picture, or several on a canvas
    split: Literal["train", "val"]  # whose folders and file names to use
    lengths: tuple[LengthRange, ...]  # ranges of tokens, a file each
    num_samples: int  # samples per file
    seed: int = 0
    max_num: int | None = None  # tile limit per image; None: the checkpoint's

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

    @property
    def ranges(self) -> dict[str, LengthRange]:
        """Length by file."""
        return {self.name_file(length): length for length in self.lengths}


@dataclass(frozen=True)
class _Materials:
    reader: ModelReader
    questions: QuestionSet


@cache
def load_materials(spec: LongVQASpec) -> _Materials:
    """Read questions and model, once per process."""
    return _Materials(load_model_reader(spec.model, spec.max_num), read_questions(spec.annotation, spec.images))


def build_long_vqa(out: Path, spec: LongVQASpec, *, num_workers: int = 0, overwrite: bool = False) -> bool:
    """Make the data set in the folder `out`; returns False when it was there already. Raises as `build_in_parts`."""
    origin = describe_origin(spec)
    recipe = Recipe(
        origin=origin,
        files=dict.fromkeys(spec.ranges, spec.num_samples),
        samples_per_part=16,
        prepare=partial(_copy_pages, spec),
        make_sample=partial(make_sample, spec),
        finish=partial(_finish, spec, origin),
    )
    return build_in_parts(out, recipe, label="long_vqa", num_workers=num_workers, overwrite=overwrite)


def describe_origin(spec: LongVQASpec) -> Origin:
    """Everything that the files follow from."""
    digest = digest_annotation(spec.annotation)
    reader = load_model_reader(spec.model, spec.max_num)
    return Origin.of(BUILDER, {"format": FORMAT, **asdict(spec), "annotation_sha256": digest, **reader.describe()})


def _copy_pages(spec: LongVQASpec, folder: Path) -> None:
    if spec.form == "image":  # canvases are drawn with their samples
        images = load_materials(spec).questions.images
        copy_images({_name_page(image): spec.images / image for image in images}, folder / spec.image_root)


def _name_page(image: str) -> str:
    """A flat file name that differs where paths differ."""
    return f"{sha256(image.encode()).hexdigest()[:12]}{Path(image).suffix.lower()}"


def make_sample(spec: LongVQASpec, folder: Path, file: str, number: int) -> Record:
    """One sample; its canvases are written on the way. ConfigError if the pictures are too large for the length."""
    length, materials = spec.ranges[file], load_materials(spec)
    root = folder / spec.image_root
    name = f"{spec.name}-{length.label}-{number:06d}"
    rng = Random(f"{spec.seed}/{spec.split}/{name}")
    for _ in range(_MAX_TRIES):
        question = rng.choice(materials.questions.questions)
        pages = _choose_pages(spec, question, length.draw(rng), rng)
        if pages is None:
            continue
        asked = min(int((number % 10 + rng.random()) / 10 * len(pages)), len(pages) - 1)  # every tenth equally often
        pages.insert(asked, pages.pop(0))
        record = _write_sample(spec, root, name, question, pages, asked)
        tokens = materials.reader.count_record(record, root)
        if min(length.low, (1 - TOLERANCE) * length.high) <= tokens <= length.high:
            record["metadata"]["context_length"] = tokens
            return record
    raise ConfigError(
        f"no sample of {length.low} to {length.high} tokens can be made of these pictures; ask for a wider range, "
        "longer samples, or a smaller --max_dynamic_patch"
    )


def _choose_pages(spec: LongVQASpec, question: PictureQuestion, num_tokens: int, rng: Random) -> list[str] | None:
    """The asked picture first, then distractors, until no room is left; None when the first is too large."""
    materials = load_materials(spec)
    reader = materials.reader
    turns = write_turns("", [(_write_question(spec, question, _MOST_PAGES), question.answer)])
    room = num_tokens - reader.count_record({"conversations": turns}, Path())
    others = [image for image in materials.questions.images if image != question.image]
    if spec.form == "paste":
        size = reader.count_canvas(CANVAS_SIDE, CANVAS_SIDE) + reader.count_text(f"{IMAGE_PLACEHOLDER}\n")
        num_pictures = max(room // size, 1) * PICTURES_PER_CANVAS - rng.randrange(PICTURES_PER_CANVAS)
        return [question.image, *_draw_many(others, num_pictures - 1, rng)]
    label = reader.count_text(f"Page {_MOST_PAGES}: {IMAGE_PLACEHOLDER}\n")
    sizes = {image: size + label for image, size in _count_pages(spec).items()}
    pages = [question.image]
    room -= sizes[question.image]
    if room < 0:
        return None
    supply: list[str] = []
    num_refused = 0
    while num_refused < _MAX_TRIES:
        if not supply:
            supply = rng.sample(others, len(others))
        image = supply.pop()
        if sizes[image] <= room:
            pages.append(image)
            room -= sizes[image]
            num_refused = 0
        else:
            num_refused += 1
    return pages


@cache
def _count_pages(spec: LongVQASpec) -> dict[str, int]:
    """Visual tokens of every picture as a page."""
    materials = load_materials(spec)
    return {image: materials.reader.count_image(spec.images / image) for image in materials.questions.images}


def _draw_many(values: Sequence[str], number: int, rng: Random) -> list[str]:
    """`number` values; none is repeated before all others have come."""
    drawn: list[str] = []
    while len(drawn) < number:
        drawn += rng.sample(values, len(values))
    return drawn[:number]


def _write_question(spec: LongVQASpec, question: PictureQuestion, number: int) -> str:
    noun = "page" if spec.form == "image" else "picture"
    return f"Look at {noun} {number}. {question.question}\n{SHORT_ANSWER_SENTENCE}"


def _write_sample(
    spec: LongVQASpec, root: Path, name: str, question: PictureQuestion, pages: Sequence[str], asked: int
) -> Record:
    if spec.form == "image":
        images = [_name_page(image) for image in pages]
        context = "".join(f"Page {number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, len(pages) + 1))
        index = asked
    else:
        images = _write_canvases(spec, root, name, pages)
        context = f"{IMAGE_PLACEHOLDER}\n" * len(images)
        index = asked // PICTURES_PER_CANVAS
    facts = {
        "context_length": 0,
        "num_pictures": len(pages),
        "asked_picture": asked + 1,
        "asked_image": index,
        "placed_depth": round(asked / max(len(pages) - 1, 1), 6),
        "source_image": question.image,
    }
    turns = write_turns(context, [(_write_question(spec, question, asked + 1), question.answer)])
    return {"id": name, "image": images, "conversations": turns, "metadata": facts}


def _write_canvases(spec: LongVQASpec, root: Path, name: str, pages: Sequence[str]) -> list[str]:
    names = []
    for first in range(0, len(pages), PICTURES_PER_CANVAS):
        group = [load_image(spec.images / image) for image in pages[first : first + PICTURES_PER_CANVAS]]
        names.append(f"{name}/{first // PICTURES_PER_CANVAS:04d}.jpg")
        write_jpeg(draw_canvas(group, first + 1), root / names[-1])
    return names


def _finish(spec: LongVQASpec, origin: Origin, folder: Path, samples: Iterable[tuple[str, Record]]) -> None:
    sheet, materials, ranges = Sheet(), load_materials(spec), spec.ranges
    for file, record in samples:
        facts = record["metadata"]
        shown_once = record["image"].count(record["image"][facts["asked_image"]]) == 1
        sheet.checks["asked_pictures_that_are_shown_once"] += shown_once
        sheet.checks["answers_that_are_not_in_the_question"] += 1
        probe = probe_record(record, file)
        sheet.note(
            file, length=facts["context_length"], asked=ranges[file], depths=[facts["placed_depth"]], probe=probe
        )
    if spec.split == "train":
        num_samples, max_num = spec.num_samples, materials.reader.max_num
        sources = {
            Path(file).stem: describe_source(
                root=spec.image_root, annotation=file, num_samples=num_samples, max_num=max_num
            )
            for file in ranges
        }
        write_meta(folder / "meta.json", sources)
    questions = materials.questions
    notes = [
        f"{len(questions.questions)} questions about {len(questions.images)} pictures, form `{spec.form}`",
        *(f"left out: {number} x {cause}" for cause, number in sorted(questions.dropped.items())),
    ]
    sheet.write(folder, origin, title=f"long_vqa_{spec.name}", notes=notes)


def probe_record(record: Record, file: str) -> Probe:
    """What shortcuts answer to a sample.

    By luck the first image is the asked one in one sample of as many as there are images.
    """
    gold = record["conversations"][1]["value"]
    sees_it = record["metadata"]["asked_image"] == 0
    guesses = {"text only": None, "first image only": gold if sees_it else None}
    return Probe(Path(file).stem, gold, None, guesses, {"first image only": 1 / len(record["image"])})
