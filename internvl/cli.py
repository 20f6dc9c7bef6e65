"""`v2pe`: every command of the project under one name.

    v2pe COMMAND ...      is      python -m MODULE ...

`--processes N` in front of the others starts a command in N processes of this machine (torchrun); shell/launch.sh
starts training on several machines. `v2pe completion bash` prints what a shell needs to complete commands and options.
"""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from internvl.command import announce_interrupts, command
from internvl.data.storage.cache import FileStamp, is_cached, name_cached_file, write_cached_file
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
    "export hub": Command("internvl.tools.export_hub", "a checkpoint to the Hugging Face hub, with a model card"),
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
_OPTION_LINE = re.compile(r"^ +(-\S+(?: \S+)*)", re.MULTILINE)  # of a help, up to what it says
_FLAG = re.compile(r"--\w[\w-]*")
# `completion words` answers for all of them; the last word that it gets is the one that is being typed.
_BASH = """\
_v2pe() {
  local words="$(v2pe completion words "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null)"
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _v2pe v2pe"""
_COMPLETIONS = {
    "bash": _BASH,
    "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}",
    "fish": "complete -c v2pe -a '(v2pe completion words (commandline -opc)[2..] \"$(commandline -ct)\" 2>/dev/null)'",
}


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
        print(write_completion(words[1:]))
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
            "processes of this machine. `v2pe completion bash` (or zsh, fish) prints completion for your shell.",
        ]
    )


def write_completion(words: Sequence[str]) -> str:
    """What `v2pe completion ...` prints: the script of a shell, or the words that its script asks for.

    Raises:
        ConfigError: There is no such shell.
    """
    shell = words[0] if words else ""
    if shell == "words":
        return "\n".join(list_words(words[1:-1], words[-1]))
    if shell not in _COMPLETIONS:
        raise ConfigError(
            f"v2pe completion: {shell!r} is no shell that it knows{did_you_mean(shell, _COMPLETIONS)}; "
            f"expected {', '.join(_COMPLETIONS)}"
        )
    return _COMPLETIONS[shell]


def list_words(before: Sequence[str], typed: str) -> list[str]:
    """What may stand after the words `before`; options only where `typed` begins like one."""
    if not before:
        return list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    seconds = [name.split()[1] for name in COMMANDS if name.startswith(f"{before[0]} ")]
    if seconds and len(before) == 1:
        return seconds
    return list_flags(find_command(before)[0]) if typed.startswith("-") else []


def list_flags(name: str) -> list[str]:
    """The options of a command, as its whole help names them; kept until a file of the package changes."""
    root = Path(__file__).parents[1]
    changed = max(path.stat().st_mtime_ns for part in ("internvl", "eval") for path in (root / part).rglob("*.py"))
    kept = name_cached_file(FileStamp(f"{root} {name}", 0, changed), "options-1")
    if not is_cached(kept):
        with write_cached_file(kept) as file:
            file.write("\n".join(_ask_for_flags(COMMANDS[name].module)).encode())
    return kept.read_text().split()


def _ask_for_flags(module: str) -> list[str]:
    for option in ("--help-all", "--help"):
        done = subprocess.run([sys.executable, "-m", module, option], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return sorted({flag for line in _OPTION_LINE.findall(done.stdout) for flag in _FLAG.findall(line)})
    return []


if __name__ == "__main__":
    announce_interrupts()
    sys.exit(main())
