"""Needles in long contexts of your own texts and images: training files and test items at 8k to 1M tokens.

    python -m internvl.synth.needles --corpus texts_and_images --model CKPT --out data/needles \\
        --train_lengths 16k-32k --num_train 1000 --test_lengths 8k 32k 128k 1M --num_test 50 --workers 8

The corpus is any folder of .txt, .md and .html files and of images. Training reads OUT/meta.json (--meta_path), the
benchmark mm_niah reads OUT (--data-root). An interrupted build resumes and makes the same files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from internvl.command import command
from internvl.synth.command import make_parts_parser, run_parts_builder
from internvl.synth.lengths import parse_length
from internvl.synth.needles.needle_set import BUILDER, build_needle_set
from internvl.synth.needles.needle_spec import NeedleSpec
from internvl.synth.needles.quizzes import TASKS


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parts_parser(BUILDER, __doc__)
    add = parser.add_argument
    add("--corpus", type=Path, required=True, metavar="FOLDER", help="texts and images")
    add("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS], help="what to ask (default: all)")
    add("--train_lengths", type=parse_length, nargs="*", default=[], metavar="LENGTH",
        help="tokens of training documents, such as 16k-32k")  # fmt: skip
    add("--num_train", type=int, default=100, help="training samples per task and length (default: %(default)s)")
    add("--test_lengths", type=parse_length, nargs="*", default=[], metavar="LENGTH",
        help="tokens of test contexts, such as 8k 128k 1M")  # fmt: skip
    add("--num_test", type=int, default=50, help="test items per task and length (default: %(default)s)")
    add("--depths", type=float, nargs="*", default=[], metavar="SHARE",
        help="depths of what is asked for, 0 to 1, in turn (default: spread evenly)")  # fmt: skip
    add("--num_needles", type=int, default=3, help="needles per context, 2 to 8 (default: %(default)s)")
    add("--answers", choices=("free", "choice", "both"), default="both",
        help="free answers, choice among four, or both in turn (default: %(default)s)")  # fmt: skip
    add("--image_share", type=float, default=0.5,
        help="share of visual tokens up to which images are put between paragraphs (default: %(default)s)")  # fmt: skip
    add("--test_share", type=float, default=0.2,
        help="share of the corpus for testing, if both are made (default: %(default)s)")  # fmt: skip
    return parser


@command(go_on="start the same command again to continue with the samples that are missing")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_parts_builder(build_parser(), argv, NeedleSpec, build_needle_set)


if __name__ == "__main__":
    sys.exit(main())
