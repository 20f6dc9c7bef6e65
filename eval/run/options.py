"""Run options: what an evaluation is asked to do, the command line of `python -m eval.run` as one record."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from eval.core.ablation import ABLATIONS, NO_ABLATION
from eval.core.data_root import FOLDERS as DATA_FOLDERS
from eval.core.scoring import check_length_edges
from eval.run.judging import NO_JUDGE, JudgeOptions
from eval.tasks.registry import GROUPS, PROMPT_STYLES, list_task_names
from eval.tasks.scorers import describe_scorers
from internvl.errors import ConfigError
from internvl.infer.context_parallel import check_shareable
from internvl.infer.flags import add_flags, at_least, check_flags, flag, from_arguments, name_checkpoint, one_of
from internvl.infer.session import check_batchable
from internvl.infer.settings import DEFAULTS, GREEDY, InferenceSettings, Sampling
from internvl.moved_names import EVALUATION_FLAGS, check_flag
from internvl.parser import CommandParser

# The options that --help shows.
_OFTEN = {
    "what is evaluated": [
        "checkpoint",
        "endpoint",
        "model",
        "list",
        "list_scorers",
        "data_root",
        "limit",
        "ablate",
        "out",
        "overwrite",
        "retry_failed",
    ],
    "positions": ["rope_pos_id_version", "rope_pos_id_stride", "rope_scaling"],
    "speed and memory": ["batch_size", "ring_attn", "gpus_per_task", "prefill_chunk_size", "dtype", "device"],
}
_OPTION = re.compile(r"\A--[a-z][a-z_-]*")
# A task chooses its frames; whether prompts are kept follows from --cache_mib.
_NOT_ASKED = ("num_frames", "reuse_prefix")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"--{name} must be a share from 0 to 1, got {value}")


@dataclass(frozen=True)
class RunOptions:
    """One evaluation run; each field's help explains it. Raises ConfigError for values out of range or in conflict."""

    tasks: str = flag(
        MISSING,
        f"comma-separated names, groups, patterns, or YAML files of own benchmarks; groups: {', '.join(GROUPS)}",
    )
    checkpoint: Path | None = flag(None, "folder of the model", read=Path)
    settings: InferenceSettings = DEFAULTS  # how the model answers
    sampling: Sampling = GREEDY  # how it chooses tokens
    judging: JudgeOptions = NO_JUDGE  # who scores what no rule can
    data_root: Path | None = flag(
        None, f"folder of the benchmarks, looked at before {', '.join(DATA_FOLDERS)}", read=Path
    )
    endpoint: str | None = flag(
        None,
        "address of a server with OpenAI's chat completions that is asked in place of a checkpoint, such as "
        "http://127.0.0.1:8000; its key is read from OPENAI_API_KEY",
        metavar="URL",
    )
    model: str | None = flag(None, "with --endpoint: name of the model there", metavar="NAME")
    endpoint_requests: int = flag(
        8, "with --endpoint: questions that are asked at the same time (%(default)s)", read=int, check=at_least(1)
    )
    limit: int | None = flag(None, "first N samples of every task only", read=int, check=at_least(1))
    out: Path | None = flag(
        None, "result folder; default: CHECKPOINT/eval_VERSION[_STRIDE][_SCALING][_logn-TOKENS][_ABLATION]", read=Path
    )
    ablate: str = flag(
        NO_ABLATION,
        "ask without what pictures show, to see whether they matter: no_image (grey ones of the same size), text_only, "
        "or shuffled_images (those of another question of the task, drawn with --seed)",
        check=one_of(ABLATIONS),
        metavar=f"{{{','.join(ABLATIONS)}}}",
    )
    prompts: str = flag(
        "upstream",
        "whose prompts and answer limits (%(default)s), or a style of an own benchmark",
        metavar=f"{{{','.join(PROMPT_STYLES)},STYLE}}",
    )
    protocol: str | None = flag(
        None,
        "scoring rule of the headline number (official); both are always written",
        metavar="{official,upstream}",
    )
    length_bins: tuple[int, ...] | None = flag(
        None,
        "left edges of context-length bins; default: the task's own, and none for tasks of short contexts",
        read=int,
        check=lambda name, value: check_length_edges(value),
        metavar="TOKENS",
        nargs="+",
    )
    ring_attn: bool = flag(
        False,
        "processes answer a question together, its keys and values spread over them; for prompts too long for one",
        read=bool,
    )
    gpus_per_task: int | None = flag(
        None,
        "with --ring_attn: processes that answer a question together (all); without it: GPUs of a process, which share "
        "the layers of a model too large for one (1)",
        read=int,
        check=at_least(1),
    )
    batch_size: int = flag(
        1,
        "questions of a task that are answered at once (%(default)s); answers are the same up to rounding",
        read=int,
        check=at_least(1),
        metavar="B",
    )
    retry_failed: bool = flag(
        False, "ask questions again that failed in an earlier run (out of memory, a damaged picture)", read=bool
    )
    fail_missing: bool = flag(
        False,
        "count questions about missing pictures and videos as failed, that is wrong, instead of refusing to run",
        read=bool,
    )
    max_failed: float = flag(
        0.5,
        "end with exit code 3 when more than this share of a task's questions failed (%(default)s); they count as "
        "wrong in any case",
        read=float,
        check=_check_share,
        metavar="SHARE",
    )
    overwrite: bool = flag(False, "throw saved predictions away first", read=bool)
    skip_missing: bool = flag(False, "leave out tasks whose data is missing, and list them", read=bool)

    def __post_init__(self) -> None:
        """Refuse wrong values and combinations."""
        check_flags(self)
        if (self.checkpoint is None) == (self.endpoint is None):
            raise ConfigError("give either --checkpoint, or --endpoint and --model, and not both")
        if (self.model is None) != (self.endpoint is None):
            raise ConfigError("--endpoint and --model belong together: the server, and which of its models")
        if self.endpoint is not None and (self.ring_attn or self.gpus_per_task or self.batch_size > 1):
            raise ConfigError(
                "--endpoint: how the server computes is its own affair; leave --ring_attn, --gpus_per_task and "
                "--batch_size out (--endpoint_requests are asked at the same time)"
            )
        if self.batch_size > 1:
            check_batchable(self.settings.kv_cache, is_shared=self.ring_attn)
            if not self.sampling.is_greedy:
                raise ConfigError("--batch_size above 1 answers greedily: leave --temperature and --num_beams out")
        if self.ring_attn:
            check_shareable(self.settings.kv_cache)
            if self.sampling.num_beams > 1:
                raise ConfigError("--ring_attn follows one answer only: leave --num_beams out")


def parse_options(argv: Sequence[str] | None = None) -> RunOptions:
    """Read the command line. Raises ConfigError if a value is out of range.

    A malformed number ends the process with argparse's own message.
    """
    words = name_checkpoint(sys.argv[1:] if argv is None else argv)
    arguments = _build_parser().parse_args([_OPTION.sub(_name_option, word) for word in words])
    settings, sampling = from_arguments(InferenceSettings, arguments), from_arguments(Sampling, arguments)
    judging = from_arguments(JudgeOptions, arguments)
    return from_arguments(RunOptions, arguments, settings=settings, sampling=sampling, judging=judging)


def _name_option(option: re.Match[str]) -> str:
    """`--data-root` -> `--data_root`; a name of the public code becomes ours."""
    name = option[0][2:].replace("-", "_")
    moved = EVALUATION_FLAGS.get(name)
    return f"--{moved.taken_as if moved and moved.taken_as else name}"


class _ListTasks(argparse.Action):
    """Prints one task name per line and ends the process, whatever else is missing on the command line."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        print("\n".join(list_task_names()))
        parser.exit()


class _ListScorers(argparse.Action):
    """Prints the scorers of own benchmarks with their options and ends the process."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        print(describe_scorers())
        parser.exit()


class _MovedOption(argparse.Action):
    """An option of the public code that has no meaning here."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, value: object, option: object = None
    ) -> None:
        """Raises ConfigError, which says what to use, unless the value asks for nothing."""
        check_flag(self.dest, value, EVALUATION_FLAGS)


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose how saved predictions become numbers."""
    add_flags(parser, RunOptions, only=("protocol", "length_bins"))
    add_flags(parser, JudgeOptions)


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m eval.run",
        often=_OFTEN,
        takes_config=True,
        description="Evaluate a checkpoint. A killed run continues when the same command is started again, also with "
        "another number of processes (torchrun or slurm tasks). Names of options may be written with - or _; "
        "docs/migration.md lists those of the public code.",
        epilog="Exit codes: 0 done; 2 could not start or go on (what was answered is kept); 3 done, but more questions "
        "of a task failed than --max_failed allows. torchrun turns any but 0 into 1.",
    )
    add_flags(parser, RunOptions)
    parser.add_argument("--list", action=_ListTasks, nargs=0, help="print the names of all tasks and end")
    parser.add_argument(
        "--list_scorers", action=_ListScorers, nargs=0, help="print the scorers of own benchmarks and end"
    )
    add_flags(parser, InferenceSettings, leave_out=_NOT_ASKED)
    add_flags(parser, Sampling)
    add_flags(parser, JudgeOptions)
    parser.set_defaults(seed=0)
    for name in (name for name, moved in EVALUATION_FLAGS.items() if moved.taken_as is None):
        parser.add_argument(f"--{name}", action=_MovedOption, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser
