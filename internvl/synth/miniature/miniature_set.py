"""The miniature retrieval set: short contexts of photographs, digits and sentences, for models that a CPU can train.

The folders are described in `__main__`. They have the forms of V2PE-Data and MM-NIAH.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tqdm import tqdm

from internvl.errors import ConfigError
from internvl.synth.contexts import PieceCounter
from internvl.synth.folders import Facts, Origin, make_folders
from internvl.synth.forms import MM_NIAH, Split, describe_source, write_lines, write_meta
from internvl.synth.miniature.benchmark_items import TEXT_TASK, BenchmarkSpec, draw_items
from internvl.synth.miniature.digit_layouts import LAYOUTS, DigitLayout
from internvl.synth.miniature.grids import TileShares
from internvl.synth.miniature.image_pool import PoolSpec, make_pool
from internvl.synth.miniature.photographs import PHOTOGRAPHS
from internvl.synth.miniature.preview import draw_preview
from internvl.synth.miniature.sentences import read_sentences
from internvl.synth.miniature.tile_contexts import ContextMaker, ContextSpec
from internvl.synth.miniature.training_records import TrainFile, TrainingSpec, draw_records
from internvl.synth.model_reader import ModelReader

BUILDER = "internvl.synth.miniature"
FORMAT = 1  # raised when the same arguments give other files
BENCHMARK_FOLDER = Path("benchmark", MM_NIAH)


@dataclass(frozen=True)
class MiniatureSpec:
    """The whole data set."""

    name: str  # folders are called `long_mr_<name>`
    seed: int
    train_files: tuple[TrainFile, ...]
    length_skew: float  # see `TrainingSpec`
    num_questions: int | None  # see `TrainingSpec`
    base_tiles: int  # haystack tiles at length 1x of the test
    factors: tuple[int, ...]  # test lengths
    num_items: int  # test items per length and task
    num_text_needles: int  # text needles per test context
    num_train_text_needles: tuple[int, int]  # least and most text needles per training context
    num_filler_sentences: tuple[int, int]  # least and most filler sentences per context
    digits: str  # layout of the image needles, a name of `LAYOUTS`
    max_num: int  # tile limit per image that models are run with
    tiles_per_pool: int  # see `PoolSpec`
    num_train_needles: int  # image needles in the training pool
    num_test_needles: int  # image needles in the test pool

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(f"name is {self.name!r}, expected letters, digits, '_', '.', '-'")
        if self.digits not in LAYOUTS:
            raise ConfigError(f"digits is {self.digits!r}, expected {' or '.join(LAYOUTS)}")
        if self.num_items < 0:
            raise ConfigError(f"num_items is {self.num_items}, expected 0 or more")
        if not self.train_files and self.num_items == 0:
            raise ConfigError("nothing to make; give --train or --num_items")
        if self.num_items > 0 and self.num_text_needles < 1:
            raise ConfigError("test items ask for a text needle; set num_text_needles to 1 or more")
        names = [file.name for file in self.train_files]
        if len(set(names)) < len(names):
            raise ConfigError(f"two training files have the same lengths ({', '.join(names)}); join them")
        smallest = {
            "base_tiles": self.base_tiles,
            "factors": min(self.factors, default=0),
            "max_dynamic_patch": self.max_num,
            "questions_per_sample": 1 if self.num_questions is None else self.num_questions,
            "num_train_needles": self.num_train_needles,
            "num_test_needles": self.num_test_needles,
        }
        for name, number in smallest.items():
            if number < 1:
                raise ConfigError(f"{name} is {number}, expected 1 or more")
        if self.length_skew <= 0:
            raise ConfigError(f"length_skew is {self.length_skew}, expected a number above 0")
        for split in ("train", "test"):
            self.context_spec(split, 0)  # checks the numbers of needles and sentences

    @property
    def layout(self) -> DigitLayout:
        """Of the digits in an image needle."""
        return LAYOUTS[self.digits]

    @property
    def test_tasks(self) -> tuple[str, ...]:
        """Names of the annotation files of the test."""
        return (TEXT_TASK, *self.layout.tasks)

    @property
    def annotation_folder(self) -> Path:
        """Training annotations, relative to the data root."""
        return Path("annotation", f"long_mr_{self.name}")

    @property
    def image_folder(self) -> Path:
        """Training images, relative to the data root."""
        return Path("image", f"long_mr_{self.name}")

    @property
    def folders(self) -> tuple[Path, ...]:
        """What is made; the annotations that point to the rest come last."""
        train = (self.image_folder, self.annotation_folder) if self.train_files else ()
        return (*((BENCHMARK_FOLDER,) if self.num_items else ()), *train)

    def context_spec(self, split: Split, max_tiles: int) -> ContextSpec:
        """What contexts of a split with up to `max_tiles` hold."""
        num_text_needles = {"train": self.num_train_text_needles, "test": (self.num_text_needles,) * 2}[split]
        return ContextSpec(num_text_needles, self.num_filler_sentences, TileShares(self.max_num, max_tiles))

    def pool_spec(self, split: Split, max_tiles: int, reader: ModelReader) -> PoolSpec:
        """The image files of a split whose contexts have up to `max_tiles`."""
        return PoolSpec(
            tile=reader.tile,
            num_image_token=reader.num_image_token,
            max_num=self.max_num,
            image_tiles=tuple(n for n in TileShares(self.max_num, max_tiles).image_tiles if n <= max_tiles),
            tiles_per_pool=self.tiles_per_pool,
            num_needles=self.num_train_needles if split == "train" else self.num_test_needles,
            layout=self.layout,
        )


def build_miniature(out: Path, spec: MiniatureSpec, reader: ModelReader, *, overwrite: bool = False) -> bool:
    """Make the data set below `out` for the model of `reader`; returns False when it was there already.

    Raises:
        DataError: A folder is in the way that this builder may not replace.
        ConfigError: The spec cannot be met.
    """

    def write(staging: Path) -> Facts:
        counts: dict[str, Mapping[str, int]] = {}
        if spec.train_files:
            counts["train"] = _build_train(staging, spec, reader)
        if spec.num_items:
            counts["test"] = _build_test(staging, spec, reader)
        for folder in spec.folders:
            (staging / folder / "README.md").write_text(_write_readme(spec, counts), encoding="utf-8")
        photographs = {split: [f"{p.package}: {p.path}" for p in chosen] for split, chosen in PHOTOGRAPHS.items()}
        return {"counts": counts, "photographs": photographs}

    return make_folders(out, spec.folders, describe_origin(spec, reader), write, overwrite=overwrite)


def describe_origin(spec: MiniatureSpec, reader: ModelReader) -> Origin:
    """Everything that the files follow from."""
    reads = {
        "tokenizer_sha256": reader.tokenizer_digest,
        "tile": reader.tile,
        "num_image_token": reader.num_image_token,
    }
    return Origin.of(BUILDER, {"format": FORMAT, **asdict(spec), **reads})


def _build_train(staging: Path, spec: MiniatureSpec, reader: ModelReader) -> Mapping[str, int]:
    annotations, images = staging / spec.annotation_folder, staging / spec.image_folder / "train"
    max_tiles = max(file.max_tiles for file in spec.train_files)
    maker, num_images = _make_maker(images, spec, reader, "train", max_tiles)
    training = TrainingSpec(spec.length_skew, spec.num_questions, spec.layout.words)
    for file in spec.train_files:
        records = draw_records(file, training, maker, _generator(spec.seed, file.name))
        write_lines(annotations / f"{file.name}.jsonl", tqdm(records, file.name, file.num_samples, mininterval=0.5))
    _write_metas(annotations, spec)
    rng = _generator(spec.seed, "preview")
    context = maker.build(max_tiles, maker.draw_needles(rng), rng)
    draw_preview(context.pieces, images).save(annotations / "preview.png")
    return {"images": num_images, **{file.name: file.num_samples for file in spec.train_files}}


def _write_metas(annotations: Path, spec: MiniatureSpec) -> None:
    """One meta json with every training file, and one for each of them (a recipe's stage reads one)."""
    sources = {
        file.name: describe_source(
            root=(spec.image_folder / "train").as_posix(),
            annotation=(spec.annotation_folder / f"{file.name}.jsonl").as_posix(),
            num_samples=file.num_samples,
            max_num=spec.max_num,
        )
        for file in spec.train_files
    }
    write_meta(annotations / "meta.json", sources)
    for file in spec.train_files:
        path = annotations / f"meta_{file.min_tiles}_{file.max_tiles}.json"
        write_meta(path, {file.name: sources[file.name]})


def _build_test(staging: Path, spec: MiniatureSpec, reader: ModelReader) -> Mapping[str, int]:
    annotations, images = staging / BENCHMARK_FOLDER / "annotations", staging / BENCHMARK_FOLDER / "images"
    annotations.mkdir()
    maker, num_images = _make_maker(images, spec, reader, "test", spec.base_tiles * max(spec.factors))
    benchmark = BenchmarkSpec(spec.base_tiles, spec.factors, spec.num_items, spec.layout)
    drawn = draw_items(benchmark, maker, PieceCounter(reader.count_text), _generator(spec.seed, "test items"))
    contexts = list(tqdm(drawn, "test contexts", len(spec.factors) * spec.num_items, mininterval=0.5))
    for task in spec.test_tasks:
        write_lines(annotations / f"{task}.jsonl", (items[task] for items in contexts))
    return {"images": num_images, **dict.fromkeys(spec.test_tasks, len(contexts))}


def _make_maker(
    images: Path, spec: MiniatureSpec, reader: ModelReader, split: Split, max_tiles: int
) -> tuple[ContextMaker, int]:
    """Write the images of a split; returns what makes its contexts, and the number of images."""
    rng = _generator(spec.seed, f"{split} images")
    pool = make_pool(images, spec.pool_spec(split, max_tiles, reader), split=split, rng=rng)
    return ContextMaker(spec.context_spec(split, max_tiles), pool, read_sentences(split)), pool.num_files


def _generator(seed: int, purpose: str) -> Random:
    """A generator for each purpose, so that one part does not change when another does."""
    return Random(f"{seed}/{purpose}")


def _write_readme(spec: MiniatureSpec, counts: Mapping[str, Mapping[str, int]]) -> str:
    train_needles = " to ".join(str(number) for number in spec.num_train_text_needles)
    lengths = ", ".join(f"{factor}x" for factor in spec.factors)
    return f"""# long_mr_{spec.name}

Multimodal retrieval in long contexts, made by `python -m {BUILDER}` (seed {spec.seed}; all arguments and counts are in
`datasheet.json`).

- haystack: crops of photographs that scikit-learn and scikit-image ship, up to {spec.max_num} tiles per image
- needles: sentences such as `Note "mango".` ({spec.num_text_needles} in a test context, {train_needles} in a training
  context), and one image of two handwritten digits (scikit-learn's digits; layout `{spec.digits}`)
- filler sentences: documentation that ships with Python

- training: {json.dumps(counts.get("train", {}))}
- test ({", ".join(spec.test_tasks)}; lengths {lengths} of {spec.base_tiles} tiles): \
{json.dumps(counts.get("test", {}))}

Training and test share no photograph, no digit, no filler sentence and no context. Guessing is right once in ten.
"""
