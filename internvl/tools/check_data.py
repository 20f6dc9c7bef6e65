"""Check training data before a run: every record is read, checked and measured as training would do it.

    python -m internvl.tools.check_data META [--model CHECKPOINT] [--workers N] [--decode] [--out DIR] [data flags]

Give the data flags of the run (--max_seq_length, --dynamic_image_size, --use_packed_ds, ...): what fits depends on
them. Template and tile size are those of --model, where no flag says otherwise. Sizes of pictures come from their
headers; --decode opens every picture and video frame fully. Without --model or --tokenizer the length of text is
estimated.

Printed: a table of the data sets, histograms of tokens and tiles per document, an estimate of an epoch, and the first
problems of each kind. DIR gets report.json, histograms.png and problems.jsonl (all problems).

Exit code: 0; 1 if more than --max_skipped of the records would be skipped; 2 if the check itself could not be made;
130 after Ctrl-C, when what was found until then has been reported.
"""

import argparse
import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from internvl.command import command
from internvl.data.encode import SampleEncoder
from internvl.data.meta import load_meta
from internvl.data.mixture import count_documents
from internvl.data.packing import PackingLimits
from internvl.data.records import RecordFile
from internvl.data.survey import SourceReport, Survey
from internvl.errors import ConfigError
from internvl.folder_owner import own_folder
from internvl.model.constants import SPECIAL_TOKENS
from internvl.model.conversation import get_conversation
from internvl.model.loading import read_chat_config
from internvl.tools.data_report import Report, format_report, write_report
from internvl.train.arguments import DataTrainingArguments, ModelArguments, TrainingParser
from internvl.train.finetune import build_encoder
from internvl.train.model_loading import count_visual_tokens, load_training_tokenizer, settle_flags

logger = logging.getLogger(__name__)

EXIT_PROBLEMS, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 130

_BYTES_PER_TOKEN = 4


class RoughTokenizer:
    """Stands in for a tokenizer that is not given: four bytes of UTF-8 are a token, special tokens are one each."""

    def __init__(self, special_tokens: Sequence[str]):
        self._ids = {token: number for number, token in enumerate(special_tokens, start=1)}
        self._pattern = re.compile("(" + "|".join(re.escape(token) for token in special_tokens) + ")")

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        """As a transformers tokenizer; adds no token."""
        ids: list[int] = []
        for piece in self._pattern.split(text):
            num_rough = math.ceil(len(piece.encode()) / _BYTES_PER_TOKEN)
            ids += [self._ids[piece]] if piece in self._ids else [0] * num_rough
        return {"input_ids": ids}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The special token of every id; empty for rough tokens."""
        names = {number: token for token, number in self._ids.items()}
        return [names.get(number, "") for number in ids]


def check_all(check: Survey, args: DataTrainingArguments, *, num_workers: int, is_exact: bool) -> Report:
    """Look at all rows, with a progress bar; Ctrl-C ends it early."""
    lengths = [len(file) for file in check.files]
    repeats = [file.spec.repeat_time for file in check.files]
    counts = count_documents(lengths, repeats, use_data_resampling=args.use_data_resampling)
    sources = tuple(
        SourceReport(file.spec.name, length, count)
        for file, length, count in zip(check.files, lengths, counts, strict=True)
    )
    is_complete = True
    logger.info("checking %s rows of %d data sets, %d worker processes", f"{sum(lengths):,}", len(sources), num_workers)
    with tqdm(total=sum(lengths), unit=" rows", desc="checking", disable=None) as bar:
        try:
            for chunk in check.run(num_workers=num_workers):
                sources[chunk.source].add(chunk)
                bar.update(chunk.num_rows)
                bar.set_postfix(problems=sum(len(source.problems) for source in sources), refresh=False)
        except KeyboardInterrupt:
            is_complete = False
    return Report(sources, args.max_skipped, is_complete, is_exact)


def make_encoder(args: DataTrainingArguments, *, model: str | None, tokenizer: str | None) -> SampleEncoder:
    """What measures documents, as in a run with these flags, which are completed from the checkpoint (`settle_flags`).

    Args:
        args: The flags.
        model: Checkpoint folder, for its tokenizer and config.
        tokenizer: Tokenizer folder; with neither, tokens are estimated.
    """
    config = read_chat_config(model) if model else None
    if differing := settle_flags(args, config):
        logger.info("flags that differ from the checkpoint's config (its value): %s", ", ".join(differing))
    if model or tokenizer:
        folders = ModelArguments(model_name_or_path=model, tokenizer_path=tokenizer)
        loaded, _ = load_training_tokenizer(folders, args.max_seq_length)
    else:
        template = get_conversation(str(args.conv_style))
        loaded = cast(PreTrainedTokenizerBase, RoughTokenizer([*SPECIAL_TOKENS, template.stop_token]))
    return build_encoder(args, tokenizer=loaded, num_image_token=count_visual_tokens(args, config))


def build_parser() -> TrainingParser:
    """The command line."""
    parser = TrainingParser(
        DataTrainingArguments,
        prog="python -m internvl.tools.check_data",
        description=__doc__,
    )
    parser.add_argument("meta", metavar="META", help="meta json of the run")
    parser.add_argument("--model", metavar="DIR", help="checkpoint that the run starts from")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer, if not the checkpoint's")
    parser.add_argument("--workers", type=int, help="processes (default: the cores, 8 at most); 0: no others")
    parser.add_argument("--decode", action="store_true", help="decode every picture and frame fully")
    parser.add_argument("--seed", type=int, default=42, help="the run's seed, which draws the frames of videos")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/check_data"), help="folder of what is written")
    return parser


def make_report(args: DataTrainingArguments, given: argparse.Namespace) -> Report:
    """Check the data that the flags describe."""
    num_workers = min(os.cpu_count() or 1, 8) if given.workers is None else given.workers
    if num_workers < 0:
        raise ConfigError(f"--workers {num_workers}: expected 0 or larger")
    limits = PackingLimits(args.max_packed_tokens, args.num_images_expected) if args.use_packed_ds else None
    specs = load_meta(given.meta, data_root=args.data_root)
    encoder = make_encoder(args, model=given.model, tokenizer=given.tokenizer)
    check = Survey(tuple(RecordFile(spec) for spec in specs), encoder, limits, given.seed, given.decode)
    return check_all(check, args, num_workers=num_workers, is_exact=bool(given.model or given.tokenizer))


def run(argv: Sequence[str] | None = None) -> int:
    """Check, print, write.

    Raises:
        InternVLError: Wrong flags, or a meta file or an annotation that cannot be read.
    """
    given = build_parser().parse_args(argv)
    values = {option.name: getattr(given, option.name) for option in fields(DataTrainingArguments)}
    args = DataTrainingArguments(**(values | {"meta_path": given.meta}))
    with own_folder(given.out, "internvl.tools.check_data"):
        report = make_report(args, given)
        print(format_report(report, args))
        write_report(report, args, given.out)
    print(f"\n{given.out}: report.json, problems.jsonl, histograms.png")
    if not report.is_complete:
        return EXIT_INTERRUPTED
    return 0 if report.is_bearable else EXIT_PROBLEMS


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
