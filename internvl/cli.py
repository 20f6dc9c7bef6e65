"""`v2pe`: every command of the project under one name.

    v2pe COMMAND ...      is      python -m MODULE ...

`--processes N` in front of the others starts a command in N processes of this machine (torchrun); shell/launch.sh
starts training on several machines. `v2pe completion bash` prints what a shell needs to complete commands and options.
"""

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from internvl.command import announce_interrupts, command
from internvl.errors import ConfigError, did_you_mean
from internvl.parser import name_command


class Command(NamedTuple):
    """A command: where it is, and what it does."""

    module: str
    summary: str
    ranks: bool = False  # whether several processes can do it together


COMMANDS = {
    "train": Command("internvl.train.internvl_chat_finetune", "fine-tune a checkpoint: flags, or RECIPE.yaml", True),
    "eval": Command("eval.run", "evaluate a checkpoint on benchmarks", True),
    "chat": Command("internvl.infer.chat", "ask a checkpoint in the terminal", True),
    "serve": Command("internvl.serve", "OpenAI-compatible server with a chat page"),
    "plan": Command("internvl.plan", "memory and time of a job, before it runs"),
    "report": Command("eval.report", "one page from several evaluations"),
    "score": Command("eval.score", "scores from saved predictions"),
    "compare": Command("eval.report.compare", "two evaluations, question by question"),
    "export native": Command("internvl.tools.export_native", "a checkpoint for transformers' own InternVL classes"),
    "export vllm": Command("internvl.tools.export_vllm", "a checkpoint for vLLM with our plug-in"),
    "merge": Command("internvl.tools.merge_lora", "adapters into the weights"),
    "assemble": Command("internvl.tools.assemble", "a checkpoint from a vision tower and a language model"),
    "tiny": Command("internvl.tools.make_tiny", "a small checkpoint with random weights"),
    "data check": Command("internvl.tools.check_data", "training data, before it is trained on"),
    "data benchmarks": Command("eval.check_data", "which benchmarks are there, whole"),
    "data needles": Command("internvl.synth.needles", "long contexts with needles (Long-MR)"),
    "data extend": Command("internvl.synth.needles.extend", "longer contexts from a needle set"),
    "data vqa": Command("internvl.synth.vqa", "long questions about many pictures (Long-VQA)"),
    "data miniature": Command("internvl.synth.miniature", "small data sets with which a CPU can train"),
    "data unpack": Command("eval.convert.unpack", "archives of benchmarks"),
    "data milebench": Command("eval.convert.milebench", "MileBench's published files"),
    "data mmmu": Command("eval.convert.mmmu", "MMMU's published files"),
    "data videomme": Command("eval.convert.videomme", "Video-MME's published files"),
    "data questions": Command("eval.convert.vqa", "published files of VQA benchmarks"),
}
_SHELLS = ("bash", "zsh")


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry: finds the command and runs it in this process."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(describe_commands())
        return 0
    if words[0] == "--version":
        from internvl import __version__

        print(f"v2pe {__version__}")
        return 0
    if words[0] == "completion":
        print(write_completion(words[1] if len(words) > 1 else ""))
        return 0
    name, rest = find_command(words)
    return _run(name, rest)


def find_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that a command line begins with, and its words.

    Raises:
        ConfigError: There is no such command.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in COMMANDS:
            return name, list(words[length:])
    known = list(COMMANDS)
    inside = [name for name in known if name.startswith(f"{words[0]} ")]
    if inside:
        got = f"it takes one of {', '.join(name.split()[1] for name in inside)}"
        typed = " ".join(words[:2])
        raise ConfigError(f"v2pe {words[0]}: {got}{did_you_mean(typed, inside) if len(words) > 1 else ''}")
    heads = dict.fromkeys(name.split()[0] for name in known)
    raise ConfigError(f"v2pe has no command {words[0]!r}{did_you_mean(words[0], heads)}; v2pe --help lists them")


def _run(name: str, words: list[str]) -> int:
    module, _, ranks = COMMANDS[name]
    if words and words[0].partition("=")[0] == "--processes":
        if not ranks:
            raise ConfigError(f"v2pe {name} is done by one process; leave --processes out")
        _start_processes(module, words)
    name_command(f"v2pe {name}")
    sys.argv = [f"v2pe {name}", *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)  # ends with SystemExit
    return 0


def _start_processes(module: str, words: list[str]) -> None:
    _, given, number = words.pop(0).partition("=")
    if not given:
        number = words.pop(0) if words else ""
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"--processes is {number!r}, expected how many processes to start, 1 or more")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    sys.stdout.flush()
    os.execv(sys.executable, [*launcher, "-m", module, *words])


def describe_commands() -> str:
    """What `v2pe --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: v2pe COMMAND [ARGUMENTS ...]",
            "",
            *lines,
            "",
            "v2pe COMMAND --help says what a command takes. train, eval and chat begin with --processes N to run in N",
            "processes of this machine. `v2pe completion bash` (or zsh) prints completion for your shell.",
        ]
    )


def write_completion(shell: str) -> str:
    """A script that completes commands, options and file names in bash or zsh.

    It names the options that the commands have now, so it takes as long as their help.

    Raises:
        ConfigError: Another shell.
    """
    if shell not in _SHELLS:
        raise ConfigError(
            f"v2pe completion: {shell!r} is no shell that it knows{did_you_mean(shell, _SHELLS)}; "
            f"expected {' or '.join(_SHELLS)}"
        )
    heads = dict.fromkeys(name.split()[0] for name in COMMANDS)
    cases = [f'    " {head}") words="{" ".join(_list_seconds(head))}" ;;' for head in heads if _list_seconds(head)]
    cases += [f'    " {name}"*) words="{" ".join(list_flags(name))}" ;;' for name in COMMANDS]
    script = [
        "_v2pe() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" words="" before=""',
        '  local -i i; for ((i = 1; i < COMP_CWORD && i < 3; i++)); do before="$before ${COMP_WORDS[i]}"; done',
        '  case "$before" in',
        f'    "") words="{" ".join(heads)}" ;;',
        *cases,
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _v2pe v2pe",
    ]
    return "\n".join(["autoload -U +X bashcompinit && bashcompinit", *script] if shell == "zsh" else script)


def _list_seconds(head: str) -> list[str]:
    return [name.split()[1] for name in COMMANDS if name.startswith(f"{head} ")]


def list_flags(name: str) -> list[str]:
    """The options of a command, as its whole help names them."""
    module = COMMANDS[name].module
    for option in ("--help-all", "--help"):
        done = subprocess.run([sys.executable, "-m", module, option], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            words = (word.strip("[],.") for line in done.stdout.splitlines() for word in line.split()[:3])
            return sorted({word for word in words if word.startswith("--")})
    return []


if __name__ == "__main__":
    announce_interrupts()
    sys.exit(main())
