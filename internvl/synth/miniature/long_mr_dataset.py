"""What a long_mr data set is made of, and how it is put together (the command line is long_mr.py)."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from internvl.atomic import stage_folders
from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.registration import load_tokenizer
from internvl.synth.folders import check_replaceable, is_finished, write_datasheet
from internvl.synth.miniature.benchmark_set import TASKS, BenchmarkSpec, TokenCounter, build_items
from internvl.synth.miniature.contexts import ContextSpec, build_context, draw_needles
from internvl.synth.miniature.grids import TileShares
from internvl.synth.miniature.photographs import PHOTOGRAPHS
from internvl.synth.miniature.pictures import PicturePool, PictureSpec, Split, count_variants, make_pool
from internvl.synth.miniature.preview import draw_context
from internvl.synth.miniature.sentences import read_sentences
from internvl.synth.miniature.training_set import TrainFile, TrainingSpec, describe_sources, write_training_file

BUILDER = "internvl.synth.needles.long_mr"
FORMAT = 1  # raised when the same arguments give other files
BENCHMARK_FOLDER = Path("benchmark", "MM-NIAH", "mm_niah_test")


@dataclass(frozen=True)
class LongMRSpec:
    """The whole data set.

    Attributes:
        name: Folders are called `long_mr_<name>`.
        seed: Everything random follows from it.
        train_files: Training annotation files.
        length_skew: See `TrainingSpec`.
        num_questions: See `TrainingSpec`.
        base_tiles: Haystack tiles at length 1x of the test.
        factors: Test lengths.
        num_items: Test items per length and task.
        num_text_needles: Text needles per test context.
        num_train_text_needles: Least and most text needles per training context.
        num_filler_sentences: Least and most filler sentences per context.
        max_num: Tile limit per image that models are run with.
        tiles_per_pool: See `PictureSpec`.
        num_train_needles: Image needles in the training pool.
        num_test_needles: Image needles in the test pool.
    """

    name: str
    seed: int
    train_files: tuple[TrainFile, ...]
    length_skew: float
    num_questions: int | None
    base_tiles: int
    factors: tuple[int, ...]
    num_items: int
    num_text_needles: int
    num_train_text_needles: tuple[int, int]
    num_filler_sentences: tuple[int, int]
    max_num: int
    tiles_per_pool: int
    num_train_needles: int
    num_test_needles: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(f"name is {self.name!r}, expected letters, digits, '_', '.', '-'")
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

    def picture_spec(self, tile: int, max_tiles: int, num_needles: int) -> PictureSpec:
        """The image files of a split."""
        sizes = tuple(number for number in TileShares(self.max_num, max_tiles).image_tiles if number <= max_tiles)
        return PictureSpec(tile, self.max_num, sizes, self.tiles_per_pool, num_needles)


@dataclass(frozen=True)
class Reader:
    """The model that will read the data: what decides the number of tokens.

    Attributes:
        tokenizer: Its tokenizer.
        tokenizer_digest: sha256 of the tokenizer's model file.
        tile: Side of a tile in pixels.
        num_image_token: Visual tokens per tile.
    """

    tokenizer: Any
    tokenizer_digest: str
    tile: int
    num_image_token: int

    @classmethod
    def load(cls, checkpoint: Path) -> "Reader":
        """Read tokenizer and sizes of a checkpoint folder.

        Raises:
            CheckpointError: It is no folder of an InternVL2 checkpoint.
        """
        tokenizer = load_tokenizer(checkpoint)
        if not (checkpoint / "config.json").is_file():
            raise CheckpointError(f"{checkpoint} holds no config.json; give an InternVL2 checkpoint as --tokenizer")
        config = InternVLChatConfig.from_pretrained(checkpoint)
        files = [path for path in (checkpoint / "tokenizer.model", checkpoint / "tokenizer.json") if path.is_file()]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        return cls(tokenizer, digest, config.image_size, config.num_image_token)


def build_dataset(out: Path, spec: LongMRSpec, reader: Reader, *, overwrite: bool = False) -> bool:
    """Make the data set below `out`.

    Args:
        out: The data root.
        spec: What to make.
        reader: The model that will read it.
        overwrite: Replace data that was made with other arguments.

    Returns:
        False when the finished data set was there already.

    Raises:
        DataError: A folder is in the way that this builder may not replace.
        ConfigError: The spec cannot be met.
    """
    arguments = _describe_arguments(spec, reader)
    if all(is_finished(out / folder, BUILDER, arguments) for folder in spec.folders):
        return False
    for folder in spec.folders:
        check_replaceable(out / folder, BUILDER, arguments, overwrite=overwrite)
    with stage_folders(out, spec.folders) as staging:
        counts: dict[str, Any] = {}
        if spec.train_files:
            counts["train"] = _build_train(staging, spec, reader)
        if spec.num_items:
            counts["test"] = _build_test(staging, spec, reader)
        sheet = {"builder": BUILDER, "arguments": arguments, "counts": counts, "photographs": _list_photographs()}
        for folder in spec.folders:
            write_datasheet(staging / folder, sheet)
            (staging / folder / "README.md").write_text(_write_readme(spec, counts), encoding="utf-8")
    return True


def _build_train(staging: Path, spec: LongMRSpec, reader: Reader) -> dict[str, Any]:
    annotations, images = staging / spec.annotation_folder, staging / spec.image_folder / "train"
    annotations.mkdir(parents=True)
    max_tiles = max(file.max_tiles for file in spec.train_files)
    pool = _make_pool(images, spec, reader, "train", max_tiles, spec.num_train_needles)
    training = TrainingSpec(spec.context_spec("train", max_tiles), spec.length_skew, spec.num_questions)
    sentences = read_sentences("train")
    with _progress("training samples", sum(file.num_samples for file in spec.train_files)) as bar:
        for file in spec.train_files:
            path = annotations / f"{file.name}.jsonl"
            rng = _generator(spec.seed, file.name)
            write_training_file(path, training, file, pool=pool, sentences=sentences, rng=rng, tick=bar.update)
    _write_metas(annotations, spec)
    rng = _generator(spec.seed, "preview")
    needles = draw_needles(training.context, pool, rng)
    context = build_context(training.context, pool, num_tiles=max_tiles, needles=needles, sentences=sentences, rng=rng)
    draw_context(context, images).save(annotations / "preview.png")
    return {"images": pool.num_files, **{file.name: file.num_samples for file in spec.train_files}}


def _write_metas(annotations: Path, spec: LongMRSpec) -> None:
    """One meta json with every training file, and one for each of them (a recipe's stage reads one)."""
    sources = describe_sources(
        spec.train_files,
        annotation_folder=spec.annotation_folder.as_posix(),
        image_folder=(spec.image_folder / "train").as_posix(),
        max_num=spec.max_num,
    )
    metas = {"meta.json": sources}
    for file in spec.train_files:
        metas[f"meta_{file.min_tiles}_{file.max_tiles}.json"] = {file.name: sources[file.name]}
    for name, meta in metas.items():
        (annotations / name).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _build_test(staging: Path, spec: LongMRSpec, reader: Reader) -> dict[str, Any]:
    annotations, images = staging / BENCHMARK_FOLDER / "annotations", staging / BENCHMARK_FOLDER / "images"
    annotations.mkdir(parents=True)
    max_tiles = spec.base_tiles * max(spec.factors)
    pool = _make_pool(images, spec, reader, "test", max_tiles, spec.num_test_needles)
    benchmark = BenchmarkSpec(spec.context_spec("test", max_tiles), spec.base_tiles, spec.factors, spec.num_items)
    counter = TokenCounter(reader.tokenizer, reader.num_image_token)
    rng = _generator(spec.seed, "test items")
    with _progress("test contexts", len(spec.factors) * spec.num_items) as bar:
        items = build_items(
            benchmark, pool, sentences=read_sentences("test"), counter=counter, rng=rng, tick=bar.update
        )
    for task, records in items.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (annotations / f"{task}.jsonl").write_text(lines, encoding="utf-8")
    return {"images": pool.num_files, **{task: len(records) for task, records in items.items()}}


def _make_pool(
    folder: Path, spec: LongMRSpec, reader: Reader, split: Split, max_tiles: int, num_needles: int
) -> PicturePool:
    pictures = spec.picture_spec(reader.tile, max_tiles, num_needles)
    total = num_needles + sum(count_variants(pictures, tiles) for tiles in pictures.image_tiles)
    with _progress(f"{split} images", total) as bar:
        return make_pool(folder, pictures, split=split, rng=_generator(spec.seed, f"{split} images"), tick=bar.update)


def _generator(seed: int, purpose: str) -> Random:
    """A generator of its own for every purpose, so that one part does not change when another does."""
    return Random(f"{seed}/{purpose}")


def _progress(what: str, total: int) -> tqdm:
    return tqdm(total=total, desc=f"long_mr: {what}", unit="", mininterval=0.5)


def _describe_arguments(spec: LongMRSpec, reader: Reader) -> dict[str, Any]:
    """Everything that the files follow from, as JSON values."""
    reads = {
        "tokenizer_sha256": reader.tokenizer_digest,
        "tile": reader.tile,
        "num_image_token": reader.num_image_token,
    }
    described: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(spec), **reads}))
    return described


def _list_photographs() -> dict[str, list[str]]:
    return {
        split: [f"{picture.package}: {picture.path}" for picture in pictures] for split, pictures in PHOTOGRAPHS.items()
    }


def _write_readme(spec: LongMRSpec, counts: Mapping[str, Any]) -> str:
    train_needles = " to ".join(str(number) for number in spec.num_train_text_needles)
    return f"""# long_mr_{spec.name}

Multimodal retrieval in long contexts, made by `python -m {BUILDER}` (seed {spec.seed}; all arguments and counts are in
`datasheet.json`).

- haystack: crops of photographs that scikit-learn and scikit-image ship, up to {spec.max_num} tiles per image
- needles: sentences such as `Note "mango".` ({spec.num_text_needles} in a test context, {train_needles} in a training
  context), and one image of two handwritten digits side by side (scikit-learn's digits)
- filler sentences: documentation that ships with Python

- training: {json.dumps(counts.get("train", {}))}
- test ({", ".join(TASKS)}; lengths {", ".join(f"{factor}x" for factor in spec.factors)} of {spec.base_tiles} tiles): \
{json.dumps(counts.get("test", {}))}

Training and test share no photograph, no digit, no filler sentence and no context. Guessing is right once in ten.
"""
