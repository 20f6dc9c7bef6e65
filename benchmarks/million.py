"""A sample of a million tokens, made by long_mr and encoded for training: CPU seconds and memory.

    python benchmarks/million.py [--tokens 1000000]

Tiles are 448 pixels and 256 tokens, as those of InternVL2; the texts are Python's documentation, the images photographs
that packages ship, half of the tokens are visual. Pixels of all tiles would take 4.6 GB, so they are loaded in shares
of 64 tiles, as ranks that share a row load theirs. The tokenizer is the tiny one of make_tiny, which gives more tokens
per text than a real one.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from internvl.data.encode import EncodedDocument, SampleEncoder, TextOptions, document_generator
from internvl.data.meta import load_meta
from internvl.data.records import Record, RecordFile
from internvl.data.strides import StrideOptions
from internvl.data.visuals import TileOptions
from internvl.model.registration import load_tokenizer
from internvl.model.v2pe import build_position_ids, units_to_strides
from internvl.synth.miniature.photographs import crop_photograph, load_photographs
from internvl.synth.miniature.sentences import read_paragraphs
from internvl.synth.needles import long_mr
from internvl.tools.make_tiny import TinySpec, make_checkpoint

SHARE = 64  # tiles


def write_corpus(folder: Path) -> None:
    """Texts and 40 photographs."""
    folder.mkdir()
    rng, paragraphs = Random(0), read_paragraphs()
    for number in range(40):
        picture = crop_photograph(rng.choice(load_photographs("train")), (900, 600), rng)
        picture.save(folder / f"{number}.jpg", quality=90)
    for first in range(0, len(paragraphs), 100):
        (folder / f"{first}.txt").write_text("\n\n".join(paragraphs[first : first + 100]), encoding="utf-8")


def peak_mb() -> float:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load_share(encoder: SampleEncoder, record: Record, first: int) -> EncodedDocument:
    """The document with `SHARE` of its tiles."""
    generator = document_generator(0, epoch=0, source="long_mr", row=0, repeat=0)
    return encoder.encode(record, generator, tiles=range(first, first + SHARE))


def main() -> None:
    """Build, encode, compute positions; print seconds and memory of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "tiny", replace(TinySpec(), image_size=448, patch_size=14))
        write_corpus(folder / "corpus")
        print(f"before: {peak_mb():.0f} MB")
        start = time.process_time()
        options = f"--corpus {folder}/corpus --model {folder}/tiny --out {folder}/set --tasks retrieval-image"
        options += f" --train_lengths {args.tokens} --num_train 1 --max_dynamic_patch 6"
        if long_mr.main(options.split()):
            raise SystemExit("the sample could not be made")
        print(f"made: {time.process_time() - start:.1f} s, {peak_mb():.0f} MB")
        tokenizer = load_tokenizer(folder / "tiny")
        encoder = SampleEncoder(
            text=TextOptions(
                tokenizer=tokenizer,
                conversation_name="internlm2-chat",
                num_image_token=256,
                max_seq_length=2 * args.tokens,
            ),
            tiles=TileOptions(image_size=448, dynamic_image_size=True, max_dynamic_patch=6),
            strides=StrideOptions(rope_pos_id_version="v2pe_rnd"),
        )
        record = RecordFile(load_meta(folder / "set" / "meta.json")[0])[0]
        start = time.process_time()
        num_tokens, num_tiles = encoder.measure(record)
        print(f"measured: {time.process_time() - start:.2f} s: {num_tokens} tokens, {num_tiles} tiles")
        start = time.process_time()
        document = load_share(encoder, record, 0)
        print(f"encoded, {SHARE} tiles loaded: {time.process_time() - start:.1f} s, {peak_mb():.0f} MB")
        image_token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        start = time.process_time()
        positions = build_position_ids(
            document.input_ids, image_token_id=image_token, num_image_token=256,
            strides=units_to_strides(document.image_strides),
        )  # fmt: skip
        seconds = time.process_time() - start
        print(f"positions: {seconds * 1e3:.0f} ms, the last is {positions[-1]:.0f}, {peak_mb():.0f} MB")
        start = time.process_time()
        for first in range(SHARE, num_tiles, SHARE):
            load_share(encoder, record, first)
        print(f"all other tiles, {SHARE} at a time: {time.process_time() - start:.1f} s, {peak_mb():.0f} MB")
        sheet = json.loads((folder / "set" / "datasheet.json").read_text())
        print(f"datasheet: {next(iter(sheet['files'].values()))['tokens']}")


if __name__ == "__main__":
    main()
