"""Encode and pack on one core: this pipeline against a straightforward one, as a ratio in one run, with equal outputs.

    python benchmarks/encode.py [--documents 60 --repeats 3]

The straightforward pipeline opens every image fully to learn its tiles and again to encode it (or once, and keeps the
pixels until their row is full), turns one tile after the other into a normalised tensor, and tokenises every piece of
text anew. All make the same packed rows of the same documents, which is compared before anything is timed. Resuming is
timed as well: a loader that starts at step 10 and at step 10,000 of its stream, up to its first row.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from internvl.build.photographs import crop_photograph, load_photographs
from internvl.build.sentences import read_paragraphs
from internvl.data.collate import collate_row
from internvl.data.encode import EncodedDocument, SampleEncoder, document_generator
from internvl.data.loader import TrainLoader, build_train_loader
from internvl.data.meta import SourceSpec
from internvl.data.packing import Packer, PackingLimits
from internvl.data.records import Record, RecordFile
from internvl.data.tiling import choose_grid
from internvl.model.constants import IMAGENET_MEAN, IMAGENET_STD
from internvl.model.conversation import get_conversation
from internvl.model.registration import load_tokenizer
from internvl.model.v2pe import stride_to_units
from internvl.tools.make_tiny import TinySpec, make_checkpoint

TILE, TOKENS_PER_TILE, MAX_NUM = 448, 256, 6
STRIDE = 64
LIMITS = PackingLimits(max_tokens=16_384, max_tiles=64)
FLOOR = "decode, resize and cut alone"  # which pipelines with equal outputs have in common
Batch = dict[str, torch.Tensor]


def write_data(folder: Path, documents: int) -> SourceSpec:
    """Photographs with questions: two images and two turns in every document."""
    rng = Random(0)
    photographs, paragraphs = load_photographs("train"), read_paragraphs()
    for number in range(24):
        size = (rng.randint(500, 1600), rng.randint(500, 1200))
        crop_photograph(rng.choice(photographs), size, rng).save(folder / f"{number}.jpg", quality=90)
    lines = []
    for _ in range(documents):
        text = " ".join(rng.sample(paragraphs, 4))
        turns = [f"<image>\n<image>\n{text} What is shown?", "Two pictures.", "Is it real?", "Yes."]
        conversations = [{"from": ("human", "gpt")[n % 2], "value": turn} for n, turn in enumerate(turns)]
        lines.append({"image": [f"{rng.randrange(24)}.jpg" for _ in range(2)], "conversations": conversations})
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SourceSpec(name="photographs", annotation=path, root=folder)


# The straightforward pipeline ---------------------------------------------------------------------------------------


def cut_image(path: Path) -> list[Image.Image]:
    """Tiles and thumbnail of an image that is opened fully."""
    image = Image.open(path).convert("RGB")
    columns, rows = choose_grid(*image.size, min_num=1, max_num=MAX_NUM, image_size=TILE)
    resized = image.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
    boxes = [(c * TILE, r * TILE, (c + 1) * TILE, (r + 1) * TILE) for r in range(rows) for c in range(columns)]
    tiles = [resized.crop(box) for box in boxes]
    return [*tiles, image.resize((TILE, TILE), Image.Resampling.BICUBIC)] if len(tiles) > 1 else tiles


def transform_tile(tile: Image.Image) -> torch.Tensor:
    """One tile as a normalised tensor, step by step."""
    tile = tile.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(tile, dtype=np.uint8)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (values - mean) / std


def tokenize_pieces(tokenizer: Any, record: Record, tiles: list[int]) -> tuple[list[int], list[int]]:
    """(ids, labels): every piece of text is tokenised when it is met, images are written out as text."""
    template = get_conversation("internlm2-chat")
    ids = list(tokenizer("")["input_ids"])
    labels = [-100] * len(ids)
    counts = iter(tiles)

    def add(text: str, *, supervised_behind: str | None = None) -> None:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        masked = len(piece)
        if supervised_behind is not None:
            masked = len(tokenizer(supervised_behind, add_special_tokens=False)["input_ids"])
        ids.extend(piece)
        labels.extend([-100] * masked + piece[masked:])

    add(template.render([]))
    for role, text in record.turns:
        if role == "assistant":
            prefix = template.assistant_prefix
            add(prefix + text + template.stop_token, supervised_behind=prefix)
            continue
        first, *others = (template.user_prefix + text).split("<image>")
        add(first)
        for other in others:
            add("<img>" + "<IMG_CONTEXT>" * (TOKENS_PER_TILE * next(counts)) + "</img>")
            add(other)
        add(template.stop_token)
    return ids, labels


def run_straightforward(records: RecordFile, tokenizer: Any, *, opens_once: bool) -> list[Batch]:
    """Packed rows, image by image and tile by tile."""
    packer: Packer[int] = Packer(LIMITS)
    encoded, rows = {}, []
    for number in range(len(records)):
        record = records[number]
        if not opens_once:
            _ = [len(cut_image(path)) for path in record.image_paths]  # to know what fits
        tiles = [cut_image(path) for path in record.image_paths]
        pixels = torch.stack([transform_tile(tile) for image in tiles for tile in image])
        ids, labels = tokenize_pieces(tokenizer, record, [len(image) for image in tiles])
        encoded[number] = torch.tensor(ids), torch.tensor(labels), pixels, len(tiles)
        rows += packer.add(number, num_tokens=len(ids), num_tiles=len(pixels))
    return [join([encoded.pop(ref) for ref in row.refs]) for row in rows + packer.flush()]


def join(documents: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]) -> Batch:
    """Documents end to end."""
    ids, labels, pixels, images = zip(*documents, strict=True)
    return {
        "input_ids": torch.cat(ids).unsqueeze(0),
        "labels": torch.cat(labels).unsqueeze(0),
        "cu_seqlens": torch.tensor([0, *map(len, ids)]).cumsum(0).to(torch.int32),
        "pixel_values": torch.cat(pixels),
        "image_flags": torch.ones(sum(map(len, pixels)), dtype=torch.int64),
        "image_strides": torch.full((sum(images),), stride_to_units(STRIDE), dtype=torch.int64),
    }


# This pipeline ------------------------------------------------------------------------------------------------------


def run_ours(records: RecordFile, encoder: SampleEncoder) -> list[Batch]:
    """Packed rows: measured from headers, packed, then made."""
    packer: Packer[int] = Packer(LIMITS)
    rows = []
    for number in range(len(records)):
        num_tokens, num_tiles = encoder.measure(records[number])
        rows += packer.add(number, num_tokens=num_tokens, num_tiles=num_tiles)

    def make(number: int) -> EncodedDocument:
        generator = document_generator(0, epoch=0, source="photographs", row=number, repeat=0)
        return encoder.encode(records[number], generator)

    return [collate_row([make(ref) for ref in row.refs]) for row in rows + packer.flush()]


def time_resume(spec: SourceSpec, encoder: SampleEncoder, folder: Path) -> dict[int, float]:
    """Seconds from a loader's state at a step to its first row, text documents only."""
    answer = {"from": "gpt", "value": "Yes."}
    lines = [{"conversations": [{"from": "human", "value": f"Number {n}?"}, answer]} for n in range(60_000)]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = SourceSpec(name="text", annotation=path, root=folder)

    def make() -> TrainLoader:
        return build_train_loader([source], encoder, num_streams=1, packing=PackingLimits(256, 4))

    loader, states = make(), {}
    for step, _ in enumerate(islice(loader, 10_000), start=1):
        if step in (10, 10_000):
            states[step] = loader.state_dict()
    seconds = {}
    for step, state in states.items():
        times = []
        for _ in range(5):
            resumed = make()
            start = time.perf_counter()
            resumed.load_state_dict(state)
            next(iter(resumed))
            times.append(time.perf_counter() - start)
        seconds[step] = min(times)
    return seconds


def main() -> None:
    """Compare outputs, time both pipelines and resuming, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no_resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "tiny", TinySpec())
        tokenizer = load_tokenizer(folder / "tiny")
        spec = write_data(folder, args.documents)
        records = RecordFile(spec)
        encoder = SampleEncoder(
            tokenizer=tokenizer, conversation_name="internlm2-chat", image_size=TILE, num_image_token=TOKENS_PER_TILE,
            max_seq_length=16_384, dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=MAX_NUM,
            rope_pos_id_version="v2pe_fix", rope_pos_id_stride=STRIDE,
        )  # fmt: skip
        variants: dict[str, Callable[[], list[Batch]]] = {
            "this pipeline": lambda: run_ours(records, encoder),
            "straightforward, images opened twice": lambda: run_straightforward(records, tokenizer, opens_once=False),
            "straightforward, images opened once": lambda: run_straightforward(records, tokenizer, opens_once=True),
        }
        expected = variants["this pipeline"]()
        for work in list(variants.values())[1:]:
            for ours, theirs in zip(expected, work(), strict=True):
                different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
                assert not different, f"the pipelines disagree about {different}"
        paths = [path for number in range(len(records)) for path in records[number].image_paths]
        floor: dict[str, Callable[[], object]] = {FLOOR: lambda: [cut_image(path) for path in paths]}
        seconds: dict[str, list[float]] = {name: [] for name in [*variants, *floor]}
        for _ in range(args.repeats):
            for name, work in (variants | floor).items():
                start = time.process_time()
                work()
                seconds[name].append(time.process_time() - start)
        tiles = sum(len(batch["image_flags"]) for batch in expected)
        print(
            f"{args.documents} documents, {tiles} tiles, {len(expected)} rows, equal outputs; CPU seconds, best of",
            end=" ",
        )
        print(args.repeats)
        best = min(seconds["this pipeline"])
        for name, times in seconds.items():
            rate = args.documents / min(times)
            print(f"{name:40} {min(times):6.2f} s  {rate:6.1f} documents/s  {min(times) / best:4.2f} x")
        if not args.no_resume:
            for step, value in time_resume(spec, encoder, folder).items():
                print(f"resume behind step {step:6}: {value * 1e3:.1f} ms to the first row")


if __name__ == "__main__":
    main()
