"""Encoding and packing on one core: our pipeline against a straightforward one, as a ratio with equal outputs.

    OMP_NUM_THREADS=1 python benchmarks/encode.py [--documents 60 --repeats 3]

Our pipeline is the loader of a training run: documents are measured from headers, packed, then made. The
straightforward one opens every image in full to count its tiles, and again to encode it (or once, keeping the pixels
until their row is full). It turns one tile after the other into a normalised tensor and tokenizes every piece of text
again. No image is shown twice. Both make the same rows in the same order, which is checked before anything is timed;
rows are dropped as they come, as a trainer does.

A rank of a group that shares rows loads only its tiles. The straightforward pipeline cannot do that: every rank makes
the whole row. Pillow's decoding and resizing, which every pipeline with equal pixels needs, is also timed alone.

Resuming is timed as well: the time until the first row of a loader that starts at step 10 and at step 10,000. All times
are CPU seconds, which other programs change little.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.loader import TrainLoader, build_train_loader
from internvl.data.meta import SourceSpec
from internvl.data.packing import Packer, PackingLimits
from internvl.data.plan import RankShare, RowOptions, TileShare
from internvl.data.records import Record, RecordFile
from internvl.data.strides import StrideOptions
from internvl.data.tiling import choose_grid
from internvl.data.visuals import TileOptions
from internvl.model.conversation import get_conversation
from internvl.model.registration import load_tokenizer
from internvl.model.v2pe import stride_to_units
from internvl.synth.miniature.photographs import crop_photograph, load_photographs
from internvl.synth.miniature.sentences import read_paragraphs
from internvl.tools.make_tiny import TinySpec, make_checkpoint

TILE, TOKENS_PER_TILE, MAX_NUM = 448, 256, 6
STRIDE = 64
LIMITS = PackingLimits(max_tokens=16_384, max_tiles=64)
OURS = {1: "this pipeline", 2: "this pipeline, one of 2 ranks of a row", 4: "this pipeline, one of 4 ranks of a row"}
STRAIGHTFORWARD = "straightforward"
Batch = dict[str, torch.Tensor]


def write_data(folder: Path, documents: int) -> SourceSpec:
    """Photographs with questions: two images and two turns in every document, every image in one document."""
    rng = Random(0)
    photographs, paragraphs = load_photographs("train"), read_paragraphs()
    for number in range(2 * documents):
        size = (rng.randint(500, 1600), rng.randint(500, 1200))
        crop_photograph(rng.choice(photographs), size, rng).save(folder / f"{number}.jpg", quality=90)
    lines = []
    for document in range(documents):
        text = " ".join(rng.sample(paragraphs, 4))
        turns = [f"<image>\n<image>\n{text} What is shown?", "Two pictures.", "Is it real?", "Yes."]
        conversations = [{"from": ("human", "gpt")[n % 2], "value": turn} for n, turn in enumerate(turns)]
        lines.append({"image": [f"{2 * document + n}.jpg" for n in range(2)], "conversations": conversations})
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
    """One tile as a tensor of pixels, step by step; both pipelines leave it to the model to normalise them."""
    tile = tile.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(tile, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def tokenize_pieces(tokenizer: Any, record: Record, tiles: list[int]) -> tuple[list[int], list[int]]:
    """(ids, labels): every piece of text is tokenised when it is met, images are written out as text."""
    template = get_conversation("internlm2-chat")
    ids = list(tokenizer("")["input_ids"])
    labels = [-100] * len(ids)
    counts = iter(tiles)

    def add(text: str, *, supervised_after: str | None = None) -> None:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        masked = len(piece)
        if supervised_after is not None:
            masked = len(tokenizer(supervised_after, add_special_tokens=False)["input_ids"])
        ids.extend(piece)
        labels.extend([-100] * masked + piece[masked:])

    add(template.render([]))
    for role, text in record.turns:
        if role == "assistant":
            prefix = template.assistant_prefix
            add(prefix + text + template.stop_token, supervised_after=prefix)
            continue
        first, *others = (template.user_prefix + text).split("<image>")
        add(first)
        for other in others:
            add("<img>" + "<IMG_CONTEXT>" * (TOKENS_PER_TILE * next(counts)) + "</img>")
            add(other)
        add(template.stop_token)
    return ids, labels


def run_straightforward(records: RecordFile, tokenizer: Any, *, opens_once: bool) -> Iterator[Batch]:
    """Packed rows, image by image and tile by tile."""
    packer: Packer[int] = Packer(LIMITS)
    encoded = {}
    for number in range(len(records)):
        record = records[number]
        if not opens_once:
            _ = [len(cut_image(path)) for path in record.image_paths]  # to know what fits
        tiles = [cut_image(path) for path in record.image_paths]
        pixels = torch.stack([transform_tile(tile) for image in tiles for tile in image])
        ids, labels = tokenize_pieces(tokenizer, record, [len(image) for image in tiles])
        encoded[number] = torch.tensor(ids), torch.tensor(labels), pixels, len(tiles)
        for row in packer.add(number, num_tokens=len(ids), num_tiles=len(pixels)):
            yield join([encoded.pop(ref) for ref in row.refs])
    for row in packer.flush():
        yield join([encoded.pop(ref) for ref in row.refs])


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


def run_ours(spec: SourceSpec, encoder: SampleEncoder, *, share: TileShare, num_rows: int) -> Iterator[Batch]:
    """Rows of an epoch, from a loader that is made for them."""
    options = RowOptions(num_streams=1, packing=LIMITS, data_order="sequential")
    loader = build_train_loader([spec], encoder, options, share=RankShare(range(1), share), max_skipped=0.0)
    return islice(loader, num_rows)


def check_rows(ours: Iterable[Batch], theirs: Iterable[Batch], share: TileShare) -> None:
    """Compare every tensor that both have; of the tiles those of one rank."""
    for own, whole in zip(ours, theirs, strict=True):
        tiles = share.own_tiles(len(whole["image_flags"]))
        part = {name: whole[name][tiles.start : tiles.stop] for name in ("pixel_values", "image_flags")}
        different = [name for name, value in (whole | part).items() if not torch.equal(own[name], value)]
        assert not different, f"the pipelines disagree about {different}"


def time_rounds(variants: dict[str, Callable[[], Iterable[object]]], num_rounds: int) -> dict[str, float]:
    """Least processor seconds of each, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(num_rounds):
        for name, work in variants.items():
            start = time.process_time()
            for _ in work():
                pass
            seconds[name].append(time.process_time() - start)
    return {name: min(times) for name, times in seconds.items()}


def time_resume(spec: SourceSpec, encoder: SampleEncoder, folder: Path) -> dict[int, float]:
    """Processor seconds from a loader's state at a step to its first row, text documents only."""
    answer = {"from": "gpt", "value": "Yes."}
    lines = [{"conversations": [{"from": "human", "value": f"Number {n}?"}, answer]} for n in range(60_000)]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = SourceSpec(name="text", annotation=path, root=folder)

    def make() -> TrainLoader:
        return build_train_loader([source], encoder, RowOptions(num_streams=1, packing=PackingLimits(256, 4)))

    loader, states = make(), {}
    for step, _ in enumerate(islice(loader, 10_000), start=1):
        if step in (10, 10_000):
            states[step] = loader.state_dict()
    seconds = {}
    for step, state in states.items():
        times = []
        for _ in range(5):
            resumed = make()
            start = time.process_time()
            resumed.load_state_dict(state)
            next(iter(resumed))
            times.append(time.process_time() - start)
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
            text=TextOptions(
                tokenizer=tokenizer,
                conversation_name="internlm2-chat",
                num_image_token=TOKENS_PER_TILE,
                max_seq_length=16_384,
            ),
            tiles=TileOptions(image_size=TILE, dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=MAX_NUM),
            strides=StrideOptions(rope_pos_id_version="v2pe_fix", rope_pos_id_stride=STRIDE),
        )
        whole_rows = [*run_straightforward(records, tokenizer, opens_once=True)]
        num_rows, num_tiles = len(whole_rows), sum(len(row["image_flags"]) for row in whole_rows)
        shares = {size: TileShare(0, size) for size in (1, 2, 4)}
        for share in (*shares.values(), TileShare(3, 4)):
            check_rows(run_ours(spec, encoder, share=share, num_rows=num_rows), whole_rows, share)
        check_rows(run_straightforward(records, tokenizer, opens_once=False), whole_rows, shares[1])
        del whole_rows
        variants: dict[str, Callable[[], Iterable[object]]] = {
            OURS[size]: partial(run_ours, spec, encoder, share=share, num_rows=num_rows)
            for size, share in shares.items()
        }
        paths = [path for number in range(len(records)) for path in records[number].image_paths]
        variants |= {
            STRAIGHTFORWARD: partial(run_straightforward, records, tokenizer, opens_once=False),
            f"{STRAIGHTFORWARD}, images opened once": partial(run_straightforward, records, tokenizer, opens_once=True),
            "pillow's decoding and resizing alone": lambda: map(cut_image, paths),
        }
        seconds = time_rounds(variants, args.repeats)
        print(f"{args.documents} documents, {num_tiles} tiles, {num_rows} rows, equal outputs; best of {args.repeats}")
        for name, value in seconds.items():
            ratios = "  ".join(f"{value / seconds[own]:5.2f}" for own in OURS.values())
            print(f"{name:48} {value:6.2f} s  {args.documents / value:6.1f} documents/s  x {ratios}")
        if not args.no_resume:
            for step, value in time_resume(spec, encoder, folder).items():
                print(f"resume after step {step:6}: {value * 1e3:.1f} ms of processor time to the first row")


if __name__ == "__main__":
    main()
