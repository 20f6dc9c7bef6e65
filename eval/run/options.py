"""What an evaluation is asked to do: the command line of `python -m eval.run` as one record."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from eval.core.scoring import check_length_edges
from eval.tasks.registry import FAMILIES, PROMPT_STYLES, list_task_names
from internvl.errors import ConfigError
from internvl.infer.context_parallel import check_shareable
from internvl.infer.session import check_batchable
from internvl.model.caches import KV_CACHES, check_kv_cache
from internvl.model.scaling import RopeScaling, check_logn_scaling, parse_rope_scaling
from internvl.model.v2pe import ROPE_POS_ID_VERSIONS

_OPTION = re.compile(r"\A--[a-z][a-z_-]*")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RunOptions:
    """One evaluation run.

    Attributes:
        checkpoint: Folder of the model.
        tasks: Comma-separated names, groups or patterns.
        rope_pos_id_version: Visual positions.
        rope_pos_id_stride: Positions that one tile spans; None: the checkpoint's own.
        rope_scaling: Scaling of rotary positions; None: the checkpoint's own.
        logn_scaling: Training length of log-n scaling of queries; 0: none; None: the checkpoint's own.
        data_root: Folder of the benchmarks.
        max_num: Largest number of tiles per image; None: the task's.
        limit: First samples of every task only.
        out: Result folder; None: inside the checkpoint.
        prompts: Whose prompts and answer limits.
        protocol: Scoring rule of the headline number; None: the task's first.
        length_bins: Left edges of context-length bins in tokens; None: the task's.
        dtype: Of the weights; None: by device.
        device: None: cuda when there is a GPU.
        cache_mib: Memory for features of images that are asked again; 0: nothing is kept for the next question.
        prefill_chunk_size: Tokens of a prompt that pass the decoder at a time; None: all at once.
        kv_cache: Where keys and values are kept.
        ring_attn: Processes answer a question together, in groups of `gpus_per_task`.
        gpus_per_task: With `ring_attn` the processes of a group, None: all of them. Otherwise the GPUs of a process,
            which share the layers of the model; None: one.
        batch_size: Questions of a task that are answered at once.
        overwrite: Throw saved predictions away first.
        retry_failed: Ask questions again that failed in an earlier run.
        fail_missing: Count questions about missing pictures and videos as failed, instead of refusing to run.
        max_failed: Largest share of failed questions of a task with which the run counts as a success.
        skip_missing: Leave out tasks whose data is missing, instead of refusing to run.
    """

    checkpoint: Path
    tasks: str
    rope_pos_id_version: str = "default"
    rope_pos_id_stride: int | float | None = None
    rope_scaling: RopeScaling | None = None
    logn_scaling: int | None = None
    data_root: Path = Path("dataset/benchmark")
    max_num: int | None = None
    limit: int | None = None
    out: Path | None = None
    prompts: str = "upstream"
    protocol: str | None = None
    length_bins: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    cache_mib: int = 1024
    prefill_chunk_size: int | None = None
    kv_cache: str = "dynamic"
    ring_attn: bool = False
    gpus_per_task: int | None = None
    batch_size: int = 1
    overwrite: bool = False
    retry_failed: bool = False
    fail_missing: bool = False
    max_failed: float = 0.5
    skip_missing: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("max_num", "limit", "prefill_chunk_size", "gpus_per_task", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")
        if self.cache_mib < 0:
            raise ConfigError(f"--cache_mib must not be negative, got {self.cache_mib}")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"--max_failed must be a share from 0 to 1, got {self.max_failed}")
        check_kv_cache(self.kv_cache)
        if self.batch_size > 1:
            check_batchable(self.kv_cache, is_shared=self.ring_attn)
        if self.ring_attn:
            check_shareable(self.kv_cache)
        if self.rope_scaling is not None:
            self.rope_scaling.check_version(self.rope_pos_id_version)
        check_logn_scaling(self.logn_scaling or None, source="--logn_scaling")
        if self.length_bins is not None:
            check_length_edges(self.length_bins)


def parse_options(argv: Sequence[str] | None = None) -> RunOptions:
    """Read the command line.

    Raises:
        ConfigError: A value is out of range (a malformed one ends the process with argparse's own message).
    """
    arguments = sys.argv[1:] if argv is None else argv
    values = vars(_build_parser().parse_args([_OPTION.sub(_write_underscores, argument) for argument in arguments]))
    if values["length_bins"] is not None:
        values["length_bins"] = tuple(values["length_bins"])
    if values["rope_scaling"] is not None:
        values["rope_scaling"] = parse_rope_scaling(values["rope_scaling"])
    given = {field.name: values[field.name] for field in fields(RunOptions) if values[field.name] is not None}
    return RunOptions(**given)


def _write_underscores(option: re.Match[str]) -> str:
    """`--data-root` -> `--data_root`."""
    return "--" + option[0][2:].replace("-", "_")


class _ListTasks(argparse.Action):
    """Prints one task name a line and ends the process, whatever else is missing on the command line."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        print("\n".join(list_task_names()))
        parser.exit()


def parse_stride(text: str) -> int | float:
    """A stride from the command line; fractions are allowed."""
    try:
        stride = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a number such as 64, 0.25 or 1/16, got {text!r}") from error
    return int(stride) if stride.denominator == 1 else float(stride)


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose how saved predictions become numbers."""
    parser.add_argument(
        "--protocol",
        metavar="{official,upstream}",
        help="scoring rule of the headline number (official); both are always written",
    )
    parser.add_argument(
        "--length_bins", type=int, nargs="+", metavar="TOKENS", help="left edges of context-length bins (MM-NIAH)"
    )


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.run",
        allow_abbrev=False,  # the scripts look for whole names
        description="Evaluate a checkpoint. A killed run continues when the same command is started again, also with "
        "another number of processes (torchrun or slurm tasks). Names of options may be written with - or _.",
        epilog="Exit codes: 0 done; 2 could not start or go on (what was answered is kept); 3 done, but more questions "
        "of a task failed than --max_failed allows. torchrun turns any but 0 into 1.",
    )
    known = ", ".join(FAMILIES)
    versions = ", ".join(ROPE_POS_ID_VERSIONS)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="folder of the model")
    add("--tasks", required=True, help=f"comma-separated names, groups or patterns; groups: {known}")
    add("--list", action=_ListTasks, nargs=0, help="print the names of all tasks and end")
    add("--rope_pos_id_version", default="default", help=f"visual positions: {versions}")
    add(
        "--rope_pos_id_stride",
        type=parse_stride,
        help="positions that one tile spans, such as 64, 0.25 or 1/16; default: the checkpoint's own",
    )
    add(
        "--rope_scaling",
        metavar="SCALING",
        help="scale positions, visual ones included: yarn:4, linear:2, dynamic:2 (version default only), none, or a "
        "json object; default: the checkpoint's own",
    )
    add(
        "--logn_scaling",
        type=int,
        metavar="TOKENS",
        help="training length beyond which queries are made longer, by log n / log TOKENS for n keys; 0: none; "
        "default: the checkpoint's own",
    )
    add("--data_root", type=Path, help="folder of the benchmarks (dataset/benchmark)")
    add("--max_num", "--max-num", type=int, help="largest number of tiles per image; default: the task's")
    add("--dynamic", action="store_true", help="understood and without effect: images are always cut into tiles")
    add("--limit", type=int, help="first N samples of every task only")
    add("--out", type=Path, help="result folder; default: CHECKPOINT/eval_VERSION[_STRIDE][_SCALING][_logn-TOKENS]")
    add("--prompts", choices=PROMPT_STYLES, help="whose prompts and answer limits (upstream)")
    add_scoring_arguments(parser)
    add("--dtype", choices=DTYPES, help="float32 on CPU, bfloat16 on CUDA")
    add("--device", choices=("cpu", "cuda"), help="default: cuda when there is a GPU")
    add(
        "--cache_mib",
        type=int,
        help="memory for features of images that are asked again, in MiB (1024); 0: keep nothing of a question for the "
        "next one, keys and values of a common beginning neither",
    )
    add("--prefill_chunk_size", type=int, help="tokens of a prompt that pass the decoder at a time (all at once)")
    add(
        "--kv_cache",
        choices=KV_CACHES,
        help="where keys and values are kept (dynamic); only quantized changes answers, its results do not mix",
    )
    add(
        "--ring_attn",
        action="store_true",
        help="processes answer a question together, its keys and values spread over them; for prompts too long for one",
    )
    add(
        "--gpus_per_task",
        type=int,
        help="with --ring_attn: processes that answer a question together (all); without it: GPUs of a process, which "
        "share the layers of a model too large for one (1)",
    )
    add(
        "--batch_size",
        type=int,
        metavar="B",
        help="questions of a task that are answered at once (1); answers are the same up to rounding",
    )
    add(
        "--retry_failed",
        action="store_true",
        help="ask questions again that failed in an earlier run (out of memory, a damaged picture)",
    )
    add(
        "--fail_missing",
        action="store_true",
        help="count questions about missing pictures and videos as failed, that is wrong, instead of refusing to run",
    )
    add(
        "--max_failed",
        type=float,
        metavar="SHARE",
        help="end with exit code 3 when more than this share of a task's questions failed (0.5); they count as wrong "
        "in any case",
    )
    add("--overwrite", action="store_true", help="throw saved predictions away first")
    add("--skip_missing", action="store_true", help="leave out tasks whose data is missing, and list them")
    return parser
