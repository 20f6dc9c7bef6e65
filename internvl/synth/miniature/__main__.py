"""A small multimodal retrieval set, made from installed packages only, for models that a CPU can train.

    python -m internvl.synth.miniature --out dataset --tokenizer pretrained/InternVL2-Tiny

    dataset/annotation/long_mr_NAME/   train_long_mr_MIN_MAX.jsonl, meta.json (all), meta_MIN_MAX.json (one each)
    dataset/image/long_mr_NAME/train/  the images of the training samples
    dataset/benchmark/MM-NIAH/mm_niah_test/{annotations,images}/   test items at several lengths

Contexts are real photographs with needles of text and digits, in the form of V2PE-Data and MM-NIAH. Training and test
share no photograph, digit or filler sentence. The same arguments give the same files; finished data is not made twice.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from internvl.command import command
from internvl.synth.command import make_data_root_parser, read_spec, run_builder
from internvl.synth.miniature.digit_layouts import LAYOUTS
from internvl.synth.miniature.miniature_set import BUILDER, MiniatureSpec, build_miniature
from internvl.synth.miniature.training_records import TrainFile
from internvl.synth.model_reader import load_model_reader

DEFAULT_TRAIN = ("0-2:8000", "0-8:6000", "0-32:12000", "0-48:6000")


def parse_train_file(text: str) -> TrainFile:
    """`MIN-MAX:COUNT` -> TrainFile; argparse.ArgumentTypeError for anything else."""
    match = re.fullmatch(r"(\d+)-(\d+):(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected MIN-MAX:COUNT, for example 0-32:15000")
    file = TrainFile(*(int(number) for number in match.groups()))
    if file.min_tiles > file.max_tiles or file.num_samples < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected MIN <= MAX and at least one sample")
    return file


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_data_root_parser(BUILDER, __doc__, name="long_mr_NAME", reads="tokenizer and tile size are used")
    add = parser.add_argument_group("contexts").add_argument
    add("--filler_sentences", dest="num_filler_sentences", type=int, nargs=2, default=(1, 2),
        metavar=("LEAST", "MOST"), help="sentences of other text per context (default: 1 2)")  # fmt: skip
    add("--digits", choices=tuple(LAYOUTS), default="pair",
        help="layout of the image needles: side by side, or in opposite corners, where left and right are asked for "
        "too (default: %(default)s)")  # fmt: skip
    add("--max_dynamic_patch", dest="max_num", type=int, default=64,
        help="most tiles per image (default: %(default)s)")  # fmt: skip
    add("--tiles_per_pool", type=int, default=96,
        help="tiles of all haystack images of one size together, at least 6 images (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("training").add_argument
    add("--train", dest="train_files", type=parse_train_file, nargs="*", metavar="MIN-MAX:COUNT",
        default=[parse_train_file(text) for text in DEFAULT_TRAIN],
        help="training files: least and most haystack tiles, number of samples; without values no training data is "
        f"made (default: {' '.join(DEFAULT_TRAIN)})")  # fmt: skip
    add("--length_skew", type=float, default=1.0,
        help="1 draws lengths uniformly, 2 prefers short contexts (default: %(default)s)")  # fmt: skip
    add("--questions_per_sample", dest="num_questions", type=int, help="questions per sample (default: all)")
    add("--train_text_needles", dest="num_train_text_needles", type=int, nargs=2, default=(1, 6),
        metavar=("LEAST", "MOST"), help="text needles per context; a small model learns to look for one before it "
        "learns to choose among six (default: 1 6)")  # fmt: skip
    add("--num_train_needles", type=int, default=2800, help="image needles (default: %(default)s)")
    add = parser.add_argument_group("test").add_argument
    add("--base_tiles", type=int, default=32, help="haystack tiles at length 1x (default: %(default)s)")
    add("--factors", type=int, nargs="+", default=[1, 2, 4, 8], help="lengths (default: 1 2 4 8)")
    add("--num_items", type=int, default=60,
        help="items per length and task; 0 makes no test data (default: %(default)s)")  # fmt: skip
    add("--num_text_needles", type=int, default=6, help="text needles per context (default: %(default)s)")
    add("--num_test_needles", type=int, default=794, help="image needles (default: %(default)s)")
    return parser


def build(arguments: argparse.Namespace) -> tuple[bool, list[Path]]:
    """Make the data set that a command line asks for."""
    spec, reader = read_spec(MiniatureSpec, arguments), load_model_reader(arguments.tokenizer)
    made = build_miniature(arguments.out, spec, reader, overwrite=arguments.overwrite)
    return made, [arguments.out / folder for folder in spec.folders]


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_builder(build_parser(), argv, build)


if __name__ == "__main__":
    sys.exit(main())
