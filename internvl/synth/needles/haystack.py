"""MM-NIAH's samples in longer contexts: 128k, 256k, 512k and 1M tokens, with the same needles and questions.

    python -m internvl.synth.needles.haystack --annotation MM-NIAH/mm_niah_test/annotations/retrieval-text.jsonl \\
        --images MM-NIAH/mm_niah_test/images --model CKPT --lengths 128k 1M --num_samples 100 --out data/haystack

The context of a sample is cut between its lines and sentences, never inside of a needle, and other text and images are
put in between, evenly, so that needles keep their order and about their depth. The filler are the contexts of the other
samples of the file without their needles, or a corpus folder (--corpus). What has to be recomputed is: lengths, depths,
and counts that go image by image (a new image has none).

    OUT/V2PE-Data/val/long_mr_1m/test_long_mr_text_retrieval_512_1200.jsonl     (128k, 256k, 512k, 1M of retrieval and
    OUT/MM-NIAH/mm_niah_test/annotations/counting-text-128k.jsonl                reasoning; everything else)
    OUT/MM-NIAH/mm_niah_test/images/
    OUT/datasheet.json, OUT/datasheet.md

The benchmarks mm_niah_long and mm_niah read OUT as --data-root.
"""

import argparse
import json
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Any

from internvl.atomic import write_atomically
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.command import make_parser, run_builder
from internvl.synth.corpus.documents import ImageBlock, describe_corpus, read_corpus
from internvl.synth.corpus.lengths import LengthRange, describe_reader, load_model_reader, parse_length
from internvl.synth.datasheet import Sheet
from internvl.synth.folders import is_finished
from internvl.synth.needles.corpus_set import ANNOTATIONS, IMAGES, probe_item
from internvl.synth.needles.haystacks import Piece, PieceCounter, fill_between, repeat_forever, write_pieces
from internvl.synth.parts import Part, Record, cut_parts, join_parts, make_parts, open_workspace
from internvl.synth.quality import count_words

BUILDER = "internvl.synth.needles.haystack"
FORMAT = 1  # raised when the same arguments give other files
LONG_FILES = {"128": "64_128", "256": "128_256", "512": "256_512", "1000": "512_1200"}
_BORDER = re.compile(r"(?<=\n)|(?<=[.!?] )")
_MAX_TRIES = 20


@dataclass(frozen=True)
class HaystackSpec:
    """What is made.

    Attributes:
        annotation: MM-NIAH's file `KIND-NEEDLE.jsonl`.
        images: Its folder of images.
        model: Checkpoint whose tokenizer and tiles count.
        lengths: Context lengths, a file each.
        num_samples: Samples per length; the file's are taken in turn.
        corpus: Folder of the filler; None: the other samples.
        seed: Everything random follows from it.
        max_num: Tile limit per image; None: the checkpoint's.
    """

    annotation: Path
    images: Path
    model: Path
    lengths: tuple[LengthRange, ...]
    num_samples: int
    corpus: Path | None = None
    seed: int = 0
    max_num: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(retrieval|counting|reasoning)-(text|image)([a-z0-9_-]*)", self.task):
            raise ConfigError(
                f"annotation is {self.annotation.name}, expected KIND-NEEDLE.jsonl as MM-NIAH names its files"
            )
        if not self.lengths or self.num_samples < 1:
            raise ConfigError("nothing to make; give --lengths and --num_samples 1 or more")
        if len({length.label for length in self.lengths}) < len(self.lengths):
            raise ConfigError("two --lengths are the same; remove one")

    @property
    def task(self) -> str:
        """`KIND-NEEDLE`."""
        return self.annotation.stem

    def name_file(self, length: LengthRange) -> str:
        """Annotation file of a length, below the finished folder."""
        kind, needle = self.task.split("-")[:2]
        if kind != "counting" and length.label in LONG_FILES and self.task == f"{kind}-{needle}":
            label = "1m" if length.label == "1000" else f"{length.label}k"
            return f"V2PE-Data/val/long_mr_{label}/test_long_mr_{needle}_{kind}_{LONG_FILES[length.label]}.jsonl"
        return f"{ANNOTATIONS}/{self.task}-{length.label}k.jsonl"


@dataclass(frozen=True)
class Item:
    """A sample and how its context is cut.

    Attributes:
        record: As it was read.
        parts: The context cut at places where something may be put in between; joined it is the context.
        asked: Part in which every needle begins, in the order of the depths.
    """

    record: Record
    parts: tuple[Piece, ...]
    asked: tuple[int, ...]


@dataclass(frozen=True)
class _Materials:
    counter: PieceCounter
    max_num: int
    items: tuple[Item, ...]
    filler: tuple[tuple[Piece, ...], ...]
    copied: Mapping[str, Path]
    dropped: Mapping[str, int]


@cache
def load_materials(spec: HaystackSpec) -> _Materials:
    """Read samples, filler and model, once per process.

    Raises:
        ConfigError: There is nothing to extend, or nothing to extend it with.
    """
    reader = load_model_reader(spec.model, spec.max_num)
    counter = PieceCounter(reader)
    dropped: Counter[str] = Counter()
    items: list[Item] = []
    for record in _read_records(spec.annotation):
        try:
            items.append(_cut_item(record, spec, counter))
        except DataError as error:
            dropped[str(error)] += 1
    if not items:
        raise ConfigError(f"{spec.annotation} has no usable sample; left out: {dict(dropped)}")
    copied = {name: spec.images / name for item in items for name in _list_images(item.record)}
    if spec.corpus is None:
        filler = tuple(tuple(_leave_out_needles(item)) for item in items)
    else:
        filler = tuple(_read_filler(spec.corpus, reader, copied))
    if not any(piece.text and piece.text.strip() for document in filler for piece in document):
        raise ConfigError("there is no text to fill contexts with; give more samples, or --corpus")
    return _Materials(counter, reader.max_num, tuple(items), filler, copied, dict(dropped))


def _read_records(annotation: Path) -> Iterator[Record]:
    try:
        lines = annotation.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"annotation {annotation} cannot be read: {error}; check --annotation") from None
    for number, line in enumerate(lines):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ConfigError(f"annotation {annotation}, row {number}: not a json line ({error})") from None


def _list_images(record: Record) -> list[str]:
    return [*record["images_list"], *(record["meta"].get("choices_image_path") or [])]


def _cut_item(record: Record, spec: HaystackSpec, counter: PieceCounter) -> Item:
    """The context in pieces.

    Raises:
        DataError: It is no sample, a needle is not there exactly once, or an image is missing.
    """
    try:
        context, meta, names = record["context"], record["meta"], [*record["images_list"]]
        depths = meta["placed_depth"] if isinstance(meta["placed_depth"], list) else [meta["placed_depth"]]
        needles = [str(needle) for needle in meta.get("needles") or []]
        _ = record["id"], record["question"], record["answer"], float(sum(depths)), meta["context_length"]
    except (KeyError, TypeError) as error:
        raise DataError(f"no MM-NIAH sample ({error!r})") from None
    if context.count(IMAGE_PLACEHOLDER) + record["question"].count(IMAGE_PLACEHOLDER) != len(names):
        raise DataError("placeholders and images differ in number")
    reader = load_model_reader(spec.model, spec.max_num)
    spans = _find_needles(context, names, needles)
    pieces: list[Piece] = []
    starts: list[int] = []
    following = iter(names)
    position = 0
    for text in _cut_context(context, [span for span in spans if span[1] > span[0]]):
        is_needle = next((index for index, span in enumerate(spans) if position == span[0] < span[1]), None)
        starts.append(position)
        position += len(text)
        if text == IMAGE_PLACEHOLDER:
            name = next(following)
            number = needles.index(name) if name in needles else None
            pieces.append(
                Piece(image=name, num_visual=reader.count_image(spec.images / name), needle=number, ending="")
            )
        else:
            pieces.append(Piece(text=text, needle=is_needle, ending=""))
    return Item(record, tuple(pieces), _find_asked(pieces, needles, depths, counter))


def _find_needles(context: str, names: Sequence[str], needles: Sequence[str]) -> list[tuple[int, int]]:
    """(first character, behind the last) of every needle; of an image needle (0, 0)."""
    spans = []
    for needle in needles:
        if needle in names:
            if names.count(needle) != 1:
                raise DataError("a needle image stands in the context more than once")
            spans.append((0, 0))
            continue
        if context.count(needle) != 1:
            spans.append((0, 0))  # an image that is not on the list by this name, or a paraphrase
            continue
        spans.append((context.index(needle), context.index(needle) + len(needle)))
    return spans


def _cut_context(context: str, needles: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Parts of a context: images, needles, and lines or sentences between them; no cut inside of a needle."""
    cuts = {0, len(context), *(place for span in needles for place in span)}
    for match in re.finditer(re.escape(IMAGE_PLACEHOLDER), context):
        cuts |= {match.start(), match.end()}
    cuts |= {match.start() for match in _BORDER.finditer(context)}
    allowed = sorted(cut for cut in cuts if not any(first < cut < last for first, last in needles))
    for first, last in pairwise(allowed):
        yield context[first:last]


def _find_asked(
    pieces: Sequence[Piece], needles: Sequence[str], depths: Sequence[float], counter: PieceCounter
) -> tuple[int, ...]:
    """Number of the piece that every depth means: the needle itself, or what stands at that depth."""
    places = {piece.needle: index for index, piece in enumerate(pieces) if piece.needle is not None}
    if len(places) == len(depths) == len(needles):
        return tuple(places[number] for number in range(len(needles)))
    ends = [*accumulate(counter.count_alone(piece) for piece in pieces)]
    return tuple(min(bisect_right(ends, depth * ends[-1]), len(pieces) - 1) for depth in depths)


def _leave_out_needles(item: Item) -> Iterator[Piece]:
    """The context without needles, those that are not asked for included where the sample names them (`hidden`)."""
    hidden = item.record["meta"].get("hidden") or []
    for piece in item.parts:
        if piece.needle is None and piece.content.strip() not in hidden and piece.image not in hidden:
            yield piece


def _read_filler(folder: Path, reader: Any, copied: dict[str, Path]) -> Iterator[tuple[Piece, ...]]:
    corpus = read_corpus(folder)
    names = {path: f"filler/{index:06d}{Path(path).suffix.lower()}" for index, path in enumerate(corpus.images)}
    sizes = {path: reader.count_image(folder / path) for path in corpus.images}
    copied |= {name: folder / path for path, name in names.items()}
    for document in corpus.documents:
        yield tuple(
            Piece(image=names[block.path], num_visual=sizes[block.path])
            if isinstance(block, ImageBlock)
            else Piece(text=block.text)
            for block in document.blocks
        )


def build_haystack(out: Path, spec: HaystackSpec, *, num_workers: int = 0, overwrite: bool = False) -> bool:
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
        materials = load_materials(spec)
        for name, source in materials.copied.items():
            if not (folder / IMAGES / name).is_file():
                write_atomically(folder / IMAGES / name, source.read_bytes())
        files = {spec.name_file(length): spec.num_samples for length in spec.lengths}
        parts = cut_parts(files, samples_per_part=4)
        make_parts(folder, parts, partial(make_sample, spec), num_workers=num_workers, label="haystack")
        sheet = Sheet()
        ranges = {spec.name_file(length): length for length in spec.lengths}
        for file, record in join_parts(folder, parts):
            depths = _as_list(record["meta"]["placed_depth"])
            sheet.checks["contexts_that_hold_every_needle_once"] += 1
            sheet.note(
                file,
                length=record["meta"]["context_length"],
                asked=ranges[file],
                depths=[sum(depths) / len(depths)],
                probe=probe_item(record, spec.task),
            )
        notes = [
            f"{len(materials.items)} samples of {spec.annotation.name}, at most {materials.max_num} tiles per image",
            *(f"left out: {number} x {cause}" for cause, number in sorted(materials.dropped.items())),
        ]
        sheet.write(folder, title=f"Long {spec.task}", builder=BUILDER, arguments=arguments, notes=notes)
    return True


def describe_arguments(spec: HaystackSpec) -> dict[str, Any]:
    """Everything that the files follow from, as JSON values."""
    described = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(spec).items()}
    try:
        digest = sha256(spec.annotation.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"annotation {spec.annotation} cannot be read: {error}; check --annotation") from None
    facts = {"format": FORMAT, **described, "annotation_sha256": digest}
    if spec.corpus is not None:
        facts["corpus_sha256"] = describe_corpus(spec.corpus)
    reader = load_model_reader(spec.model, spec.max_num)
    result: dict[str, Any] = json.loads(json.dumps(facts | describe_reader(reader)))
    return result


def make_sample(spec: HaystackSpec, part: Part, number: int) -> Record:
    """One extended sample.

    Raises:
        ConfigError: The sample is longer than what it shall become, or the filler will not do.
    """
    length = next(length for length in spec.lengths if spec.name_file(length) == part.file)
    materials = load_materials(spec)
    rng = Random(f"{spec.seed}/{part.file}/{number}")
    index = number % len(materials.items)
    item = materials.items[index]
    flaw = ""
    for _ in range(_MAX_TRIES):
        filler = _draw_filler(materials, -1 if spec.corpus else index, item, rng)
        pieces, is_new = fill_between(
            item.parts, filler, num_tokens=length.draw(rng), counter=materials.counter, rng=rng
        )
        flaw = _find_flaw(pieces, item)
        if not flaw:
            return _write_record(
                item, pieces, is_new, f"{item.record['id']}-{length.label}k-{number:05d}", materials.counter
            )
    raise ConfigError(f"sample {item.record['id']} cannot be extended: {flaw}; give other filler with --corpus")


def _draw_filler(materials: _Materials, own: int, item: Item, rng: Random) -> Iterator[Piece]:
    """Pieces of other contexts in random order; the context's own only when there is no other."""
    candidates = [number for number in range(len(materials.filler)) if number != own] or [own]
    needles = [str(needle) for needle in item.record["meta"].get("needles") or []]
    answer = item.record["answer"]
    forbidden = [*needles, *([answer] if isinstance(answer, str) and not answer.isdigit() else [])]

    def read_through() -> Iterator[Piece]:
        for number in rng.sample(candidates, len(candidates)):
            for piece in materials.filler[number]:
                if piece.text is None:
                    is_good = piece.image not in forbidden
                else:
                    is_good = bool(piece.text.strip()) and not any(count_words(piece.text, word) for word in forbidden)
                if is_good:
                    yield replace(piece, text=piece.text and piece.text.strip(), ending="\n")

    yield from repeat_forever(read_through)


def _find_flaw(pieces: Sequence[Piece], item: Item) -> str:
    text = write_pieces(pieces)
    for needle in item.record["meta"].get("needles") or []:
        was, now = item.record["context"].count(str(needle)), text.count(str(needle))
        if was == 1 and now != 1:
            return f"the needle {needle!r} stands there {now} times"
    return ""


def _write_record(
    item: Item, pieces: Sequence[Piece], is_new: Sequence[bool], name: str, counter: PieceCounter
) -> Record:
    num_text, num_visual = counter.count(pieces)
    total = num_text + num_visual
    own = [index for index, new in enumerate(is_new) if not new]  # place of every piece of the old context
    depths = [round(sum(counter.count(pieces[: own[asked]])) / total, 6) for asked in item.asked]
    meta = item.record["meta"]
    images = [piece.image for piece in pieces if piece.image is not None]
    num_asked = item.record["question"].count(IMAGE_PLACEHOLDER)
    behind = item.record["images_list"][len(item.record["images_list"]) - num_asked :]
    return {
        **item.record,
        "id": name,
        "images_list": [*images, *behind],
        "context": write_pieces(pieces),
        "answer": _extend_answer(item, pieces, is_new),
        "meta": {
            **meta,
            "placed_depth": depths if isinstance(meta["placed_depth"], list) else depths[0],
            "context_length": total,
            "context_length_text": num_text,
            "context_length_image": num_visual,
            "num_images": len(images),
            "original_context_length": meta["context_length"],
        },
    }


def _extend_answer(item: Item, pieces: Sequence[Piece], is_new: Sequence[bool]) -> Any:
    """The answer; one with a count for every image of the context gets a 0 for every new image."""
    answer = item.record["answer"]
    counts = json.loads(answer) if isinstance(answer, str) and answer.startswith("[") else answer
    num_images = sum(piece.image is not None for piece in item.parts)
    num_needles = len(item.record["meta"].get("needles") or [])
    if not isinstance(counts, list) or len(counts) != num_images or len(counts) == num_needles:
        return answer
    old = iter(counts)
    return [0 if new else next(old) for piece, new in zip(pieces, is_new, strict=True) if piece.image is not None]


def _as_list(depth: float | list[float]) -> list[float]:
    return depth if isinstance(depth, list) else [depth]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(BUILDER, __doc__)
    add = parser.add_argument
    add("--annotation", type=Path, required=True, metavar="KIND-NEEDLE.jsonl", help="samples of MM-NIAH")
    add("--images", type=Path, required=True, help="folder of their images")
    add("--lengths", type=parse_length, nargs="+", required=True, metavar="LENGTH", help="tokens, such as 128k 1M")
    add("--num_samples", type=int, default=100, help="samples per length (default: %(default)s)")
    add("--corpus", type=Path, default=None, metavar="FOLDER", help="filler (default: the other samples)")
    return parser


def read_spec(arguments: argparse.Namespace) -> HaystackSpec:
    """The data set that a command line asks for."""
    return HaystackSpec(
        annotation=arguments.annotation,
        images=arguments.images,
        model=arguments.model,
        lengths=tuple(arguments.lengths),
        num_samples=arguments.num_samples,
        corpus=arguments.corpus,
        seed=arguments.seed,
        max_num=arguments.max_dynamic_patch,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_builder(build_parser(), argv, read_spec, build_haystack)


if __name__ == "__main__":
    sys.exit(main())
