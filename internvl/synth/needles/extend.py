"""MM-NIAH's samples in longer contexts: 128k, 256k, 512k and 1M tokens, with the same needles and questions.

    python -m internvl.synth.needles.extend --annotation MM-NIAH/mm_niah_test/annotations/retrieval-text.jsonl \\
        --images MM-NIAH/mm_niah_test/images --model CKPT --lengths 128k 1M --num_samples 100 --out data/extended

Other text and images are put evenly between the lines and sentences of a context, so needles keep their order and about
their depth. The filler is the contexts of the other samples of the file without their needles, or a corpus folder
(--corpus). Lengths, depths, and counts that go image by image (a new image has none) are computed again.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from random import Random

from internvl.command import command
from internvl.errors import ConfigError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.command import make_parts_parser, run_parts_builder
from internvl.synth.contexts import Piece, PieceCounter, list_images, write_pieces
from internvl.synth.corpus.documents import describe_corpus, read_corpus
from internvl.synth.corpus.filler import cut_corpus, repeat_forever
from internvl.synth.datasheet import Sheet
from internvl.synth.folders import Origin, digest_annotation
from internvl.synth.forms import ITEM_IMAGES, ITEMS, Record, write_lengths
from internvl.synth.images import copy_images
from internvl.synth.lengths import LengthRange, parse_length
from internvl.synth.model_reader import load_model_reader
from internvl.synth.needles.filling import fill_between
from internvl.synth.needles.niah_items import NiahItem, read_items
from internvl.synth.parts import Recipe, build_in_parts
from internvl.synth.shortcuts import count_words, probe_item

BUILDER = "internvl.synth.needles.extend"
FORMAT = 1  # raised when the same arguments give other files
LONG_FILES = {"128": "64_128", "256": "128_256", "512": "256_512", "1000": "512_1200"}
_MAX_TRIES = 20


@dataclass(frozen=True)
class ExtensionSpec:
    """The samples to extend, and how."""

    annotation: Path  # MM-NIAH's file `KIND-NEEDLE.jsonl`
    images: Path  # its folder of images
    model: Path  # checkpoint whose tokenizer and tiles count
    lengths: tuple[LengthRange, ...]  # context lengths, a file each
    num_samples: int  # samples per length; the file's are taken in turn
    corpus: Path | None = None  # folder of the filler; None: the other samples
    seed: int = 0
    max_num: int | None = None  # tile limit per image; None: the checkpoint's

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
        return f"{ITEMS}/{self.task}-{length.label}k.jsonl"

    @property
    def ranges(self) -> dict[str, LengthRange]:
        """Length by file."""
        return {self.name_file(length): length for length in self.lengths}


@dataclass(frozen=True)
class _Materials:
    counter: PieceCounter
    max_num: int
    items: tuple[NiahItem, ...]
    filler: tuple[tuple[Piece, ...], ...]
    copies: Mapping[str, Path]
    dropped: Mapping[str, int]


@cache
def load_materials(spec: ExtensionSpec) -> _Materials:
    """Read samples, filler and model, once per process; ConfigError if there are no samples or no filler."""
    reader = load_model_reader(spec.model, spec.max_num)
    items, dropped = read_items(spec.annotation, spec.images, reader)
    copies = {name: spec.images / name for item in items for name in item.images}
    if spec.corpus is None:
        filler = tuple(tuple(item.leave_out_needles()) for item in items)
    else:
        pieces = cut_corpus(spec.corpus, read_corpus(spec.corpus), reader, prefix="filler")
        filler = tuple(tuple(pieces.read(document)) for document in pieces.corpus.documents)
        copies |= pieces.list_copies()
    if not any(piece.text and piece.text.strip() for document in filler for piece in document):
        raise ConfigError("there is no text to fill contexts with; give more samples, or --corpus")
    return _Materials(PieceCounter(reader.count_text), reader.max_num, tuple(items), filler, copies, dropped)


def build_extension(out: Path, spec: ExtensionSpec, *, num_workers: int = 0, overwrite: bool = False) -> bool:
    """Make the data set in the folder `out`; returns False when it was there already. Raises as `build_in_parts`."""
    origin = describe_origin(spec)
    recipe = Recipe(
        origin=origin,
        files=dict.fromkeys(spec.ranges, spec.num_samples),
        samples_per_part=4,
        prepare=lambda folder: copy_images(load_materials(spec).copies, folder / ITEM_IMAGES),
        make_sample=partial(make_sample, spec),
        finish=partial(_finish, spec, origin),
    )
    return build_in_parts(out, recipe, label="extend", num_workers=num_workers, overwrite=overwrite)


def describe_origin(spec: ExtensionSpec) -> Origin:
    """Everything that the files follow from."""
    facts: dict[str, object] = {"annotation_sha256": digest_annotation(spec.annotation)}
    if spec.corpus is not None:
        facts["corpus_sha256"] = describe_corpus(spec.corpus)
    facts |= load_model_reader(spec.model, spec.max_num).describe()
    return Origin.of(BUILDER, {"format": FORMAT, **asdict(spec), **facts})


def _finish(spec: ExtensionSpec, origin: Origin, folder: Path, samples: Iterable[tuple[str, Record]]) -> None:
    sheet, materials, ranges = Sheet(), load_materials(spec), spec.ranges
    for file, record in samples:
        meta = record["meta"]
        depths = meta["placed_depth"] if isinstance(meta["placed_depth"], list) else [meta["placed_depth"]]
        sheet.checks["contexts_that_hold_every_needle_once"] += 1
        probe = probe_item(record, spec.task)
        sheet.note(file, length=meta["context_length"], asked=ranges[file], depths=depths, probe=probe)
    notes = [
        f"{len(materials.items)} samples of {spec.annotation.name}, at most {materials.max_num} tiles per image",
        *(f"left out: {number} x {cause}" for cause, number in sorted(materials.dropped.items())),
    ]
    sheet.write(folder, origin, title=f"Long {spec.task}", notes=notes)


def make_sample(spec: ExtensionSpec, folder: Path, file: str, number: int) -> Record:
    """One extended sample; ConfigError if it is already too long, or if the filler repeats its needles."""
    length, materials = spec.ranges[file], load_materials(spec)
    rng = Random(f"{spec.seed}/{file}/{number}")
    index = number % len(materials.items)
    item = materials.items[index]
    flaw = ""
    for _ in range(_MAX_TRIES):
        filler = _draw_filler(materials, -1 if spec.corpus else index, item, rng)
        mixed = fill_between(item.parts, filler, num_tokens=length.draw(rng), counter=materials.counter, rng=rng)
        flaw = _find_flaw(write_pieces([piece for piece, _ in mixed]), item)
        if not flaw:
            name = f"{item.record['id']}-{length.label}k-{number:05d}"
            return _write_record(item, mixed, name, materials.counter)
    raise ConfigError(f"sample {item.record['id']} cannot be extended: {flaw}; give other filler with --corpus")


def _draw_filler(materials: _Materials, own: int, item: NiahItem, rng: Random) -> Iterator[Piece]:
    """Pieces of other contexts in random order; the context's own only when there is no other."""
    candidates = [number for number in range(len(materials.filler)) if number != own] or [own]
    answer = item.record["answer"]
    # Short numbers occur in any text, so an answer that is a number rules out no filler.
    forbidden = [*item.needles, *([answer] if isinstance(answer, str) and not answer.isdigit() else [])]

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


def _find_flaw(text: str, item: NiahItem) -> str:
    for needle in item.needles:
        if item.record["context"].count(needle) == 1 and text.count(needle) != 1:
            return f"the needle {needle!r} stands there {text.count(needle)} times"
    return ""


def _write_record(item: NiahItem, mixed: Sequence[tuple[Piece, bool]], name: str, counter: PieceCounter) -> Record:
    pieces = [piece for piece, _ in mixed]
    num_text, num_visual = counter.count(pieces)
    old_places = [index for index, (_, is_new) in enumerate(mixed) if not is_new]  # of each part of the old context
    depths = [round(counter.measure_depth(pieces, old_places[asked], num_text + num_visual), 6) for asked in item.asked]
    record, meta, images = item.record, item.record["meta"], list_images(pieces)
    num_in_question = record["question"].count(IMAGE_PLACEHOLDER)
    return {
        **record,
        "id": name,
        "images_list": [*images, *record["images_list"][len(record["images_list"]) - num_in_question :]],
        "context": write_pieces(pieces),
        "answer": _extend_answer(item, mixed),
        "meta": {
            **meta,
            "placed_depth": depths if isinstance(meta["placed_depth"], list) else depths[0],
            **write_lengths(num_text, num_visual, len(images)),
            "original_context_length": meta["context_length"],
        },
    }


def _extend_answer(item: NiahItem, mixed: Sequence[tuple[Piece, bool]]) -> object:
    """The answer; one with a count for each image of the context gets a 0 for each new image."""
    answer = item.record["answer"]
    counts = json.loads(answer) if isinstance(answer, str) and answer.startswith("[") else answer
    num_images = len(list_images(item.parts))
    if not isinstance(counts, list) or len(counts) != num_images or len(counts) == len(item.needles):
        return answer
    old = iter(counts)
    return [0 if is_new else next(old) for piece, is_new in mixed if piece.image is not None]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parts_parser(BUILDER, __doc__)
    add = parser.add_argument
    add("--annotation", type=Path, required=True, metavar="KIND-NEEDLE.jsonl", help="samples of MM-NIAH")
    add("--images", type=Path, required=True, help="folder of their images")
    add("--lengths", type=parse_length, nargs="+", required=True, metavar="LENGTH", help="tokens, such as 128k 1M")
    add("--num_samples", type=int, default=100, help="samples per length (default: %(default)s)")
    add("--corpus", type=Path, default=None, metavar="FOLDER", help="filler (default: the other samples)")
    return parser


@command(go_on="start the same command again to continue with the samples that are missing")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_parts_builder(build_parser(), argv, ExtensionSpec, build_extension)


if __name__ == "__main__":
    sys.exit(main())
