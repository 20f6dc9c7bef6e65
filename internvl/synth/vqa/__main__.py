"""Long questions about one picture among many, made of any set of questions about single pictures.

    python -m internvl.synth.vqa --annotation chartqa.jsonl --images chartqa --model CKPT --name chartqa \\
        --form paste --split val --lengths 16k-32k 32k-40k 56k-64k --num_samples 500 --out data/long_vqa

    image   every picture is a page                      "Page 7: <image>" ... "Look at page 7. What ...?"
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
import sys
from collections.abc import Sequence
from pathlib import Path

from internvl.command import command
from internvl.synth.command import make_parts_parser, run_parts_builder
from internvl.synth.lengths import parse_length
from internvl.synth.vqa.long_vqa import BUILDER, LongVQASpec, build_long_vqa


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parts_parser(BUILDER, __doc__)
    add = parser.add_argument
    add("--annotation", type=Path, required=True, help="jsonl of questions about single pictures")
    add("--images", type=Path, required=True, help="folder that its picture paths are relative to")
    add("--name", required=True, help="name of the set, such as chartqa")
    add("--form", choices=("image", "paste"), default="image", help="see above (default: %(default)s)")
    add("--split", choices=("train", "val"), default="train", help="what it is for (default: %(default)s)")
    add("--lengths", type=parse_length, nargs="+", required=True, metavar="LOW-HIGH", help="tokens, such as 16k-32k")
    add("--num_samples", type=int, default=100, help="samples per range (default: %(default)s)")
    return parser


@command(go_on="start the same command again to continue with the samples that are missing")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_parts_builder(build_parser(), argv, LongVQASpec, build_long_vqa)


if __name__ == "__main__":
    sys.exit(main())
