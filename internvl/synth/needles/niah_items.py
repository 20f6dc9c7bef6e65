"""MM-NIAH items for extension: the context is cut into parts, and filler can be put between them.

The cuts lie between lines and sentences, never inside a needle.
"""

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.contexts import Piece, PieceCounter
from internvl.synth.folders import read_annotation
from internvl.synth.forms import Record
from internvl.synth.model_reader import ModelReader

_BORDER = re.compile(r"(?<=\n)|(?<=[.!?] )")


@dataclass(frozen=True)
class NiahItem:
    """An item and how its context is cut."""

    record: Record  # as it was read
    parts: tuple[Piece, ...]  # the context, cut; joined it is the context
    asked: tuple[int, ...]  # part in which each needle begins, in the order of the depths

    @property
    def needles(self) -> list[str]:
        """Needle sentences and paths of needle images, as far as the item names them."""
        return [str(needle) for needle in self.record["meta"].get("needles") or []]

    @property
    def images(self) -> list[str]:
        """All its images: those of the context, of the question and of the options."""
        return [*self.record["images_list"], *(self.record["meta"].get("choices_image_path") or [])]

    def leave_out_needles(self) -> Iterator[Piece]:
        """The context without needles, also without those that are not asked for if the item names them (`hidden`)."""
        hidden = self.record["meta"].get("hidden") or []
        for piece in self.parts:
            if piece.needle is None and piece.content.strip() not in hidden and piece.image not in hidden:
                yield piece


def read_items(annotation: Path, images: Path, reader: ModelReader) -> tuple[list[NiahItem], Mapping[str, int]]:
    """The usable items of a file, and how many were left out by cause.

    Raises ConfigError if the file cannot be read, a line is not json, or no item is usable.
    """
    counter = PieceCounter(reader.count_text)
    dropped: Counter[str] = Counter()
    items = []
    for record in _read_records(annotation):
        try:
            items.append(_cut_item(record, images, reader, counter))
        except DataError as error:
            dropped[str(error)] += 1
    if not items:
        raise ConfigError(f"{annotation} has no usable sample; left out: {dict(dropped)}")
    return items, dropped


def _read_records(annotation: Path) -> Iterator[Record]:
    for number, line in enumerate(read_annotation(annotation)):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ConfigError(f"annotation {annotation}, row {number}: not a json line ({error})") from None


def _cut_item(record: Record, images: Path, reader: ModelReader, counter: PieceCounter) -> NiahItem:
    try:
        context, meta, names = record["context"], record["meta"], [*record["images_list"]]
        depths = meta["placed_depth"] if isinstance(meta["placed_depth"], list) else [meta["placed_depth"]]
        needles = [str(needle) for needle in meta.get("needles") or []]
        _ = record["id"], record["question"], record["answer"], float(sum(depths)), meta["context_length"]
    except (KeyError, TypeError) as error:
        raise DataError(f"no MM-NIAH sample ({error!r})") from None
    if context.count(IMAGE_PLACEHOLDER) + record["question"].count(IMAGE_PLACEHOLDER) != len(names):
        raise DataError("placeholders and images differ in number")
    spans = _find_needles(context, names, needles)
    pieces: list[Piece] = []
    following = iter(names)
    position = 0
    for text in _cut_context(context, spans.values()):
        if text == IMAGE_PLACEHOLDER:
            name = next(following)
            number = needles.index(name) if name in needles else None
            piece = Piece(image=name, num_visual=reader.count_image(images / name), needle=number, ending="")
        else:
            number = next((number for number, span in spans.items() if position == span[0]), None)
            piece = Piece(text=text, needle=number, ending="")
        pieces.append(piece)
        position += len(text)
    return NiahItem(record, tuple(pieces), _find_asked(pieces, len(needles), depths, counter))


def _find_needles(context: str, names: Sequence[str], needles: Sequence[str]) -> dict[int, tuple[int, int]]:
    """(first character, one more than the last) of the needles that are sentences, by number."""
    spans = {}
    for number, needle in enumerate(needles):
        if needle in names:
            if names.count(needle) != 1:
                raise DataError("a needle image stands in the context more than once")
        elif context.count(needle) == 1:  # else an image under another name, or a paraphrase
            spans[number] = (context.index(needle), context.index(needle) + len(needle))
    return spans


def _cut_context(context: str, needles: Collection[tuple[int, int]]) -> Iterator[str]:
    """Parts of a context: images, needles, and lines or sentences between them."""
    cuts = {0, len(context), *(place for span in needles for place in span)}
    for match in re.finditer(re.escape(IMAGE_PLACEHOLDER), context):
        cuts |= {match.start(), match.end()}
    cuts |= {match.start() for match in _BORDER.finditer(context)}
    allowed = sorted(cut for cut in cuts if not any(first < cut < last for first, last in needles))
    for first, last in pairwise(allowed):
        yield context[first:last]


def _find_asked(
    pieces: Sequence[Piece], num_needles: int, depths: Sequence[float], counter: PieceCounter
) -> tuple[int, ...]:
    """Number of the piece that each depth means: the needle itself, or what stands at that depth."""
    places = {piece.needle: index for index, piece in enumerate(pieces) if piece.needle is not None}
    if len(places) == len(depths) == num_needles:
        return tuple(places[number] for number in range(num_needles))
    ends = [*accumulate(counter.count_alone(piece) for piece in pieces)]
    return tuple(min(bisect_right(ends, depth * ends[-1]), len(pieces) - 1) for depth in depths)
