"""Command lines: short and whole help, errors of one line, config files, and `v2pe`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from internvl.cli import COMMANDS, find_command, write_completion
from internvl.config_file import read_config
from internvl.errors import ConfigError
from internvl.model.errors import did_you_mean
from internvl.parser import CommandParser
from tests.warm_python import warm_python

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parser():
    made = CommandParser(prog="tool", often={"rates": ["rate"]}, takes_config=True)
    made.add_argument("--rate", type=float, default=0.1, help="how fast")
    made.add_argument("--names", nargs="+", default=[])
    made.add_argument("--mode", choices=("packed", "ring"), default="ring", help="how rows are shared")
    made.add_argument("--quiet", action="store_true")
    return made


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--rat", "1"],
            "error: unrecognized arguments: --rat 1, did you mean '--rate'?; tool --help lists what it takes",
        ),
        (["--mode", "rign"], "did you mean 'ring'?"),
        (["--rate", "fast"], "error: argument --rate: invalid float value: 'fast'; tool --help lists what it takes"),
        (["--zzz"], "error: unrecognized arguments: --zzz; tool --help lists what it takes"),
    ],
)
def test_a_mistake_is_answered_in_one_line(parser, words, line, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    written = capsys.readouterr().err
    assert end.value.code == 2
    assert line in written
    assert written.count("\n") == 1


def test_help_has_two_lengths(parser, capsys):
    texts = []
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            parser.parse_args([option])
        assert end.value.code == 0
        texts.append(capsys.readouterr().out)
    short, whole = texts
    assert "--rate VALUE" in short
    assert "--mode" not in short
    assert "--help-all" in short
    assert "how rows are shared" in whole


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_config_file_says_what_flags_say(parser, suffix, tmp_path):
    path = tmp_path / f"run{suffix}"
    values = {"rate": 5e-6, "names": ["a", "b c"], "quiet": True, "mode": None}
    path.write_text(json.dumps(values))
    given = parser.parse_args([str(path), "mode=packed", "--rate", "0.5"])
    assert vars(given) == {"rate": 0.5, "names": ["a", "b c"], "mode": "packed", "quiet": True}


def test_yaml_values_are_what_they_look_like(parser, tmp_path):
    """`no` is a word, and a number without a point is one."""
    parser.add_argument("--save_strategy", default="yes")
    parser.add_argument("--extra")
    path = tmp_path / "run.yaml"
    path.write_text("save_strategy: no\nrate: 1e-5\nnames: [1, 0.0625]\nextra: {steps: 5, ratio: 1e-1, name: off}\n")
    given = parser.parse_args([str(path)])
    assert (given.save_strategy, given.rate, given.names) == ("no", 1e-5, ["1", "0.0625"])
    assert json.loads(given.extra) == {"steps": 5, "ratio": 0.1, "name": "off"}


def test_a_file_inherits_by_name(parser, tmp_path):
    (tmp_path / "plain.yaml").write_text("rate: 1\nmode: packed\nquiet: true\n")
    (tmp_path / "middle.yaml").write_text("base: plain\nrate: 2\n")
    (tmp_path / "mine.yaml").write_text("base: middle.yaml\nquiet: false\nmode: null\n")
    given = parser.parse_args([str(tmp_path / "mine.yaml")])
    assert (given.rate, given.mode, given.quiet) == (2, "ring", False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raet: 1", "unknown option 'raet', did you mean 'rate'?"),
        ("rate: [1, 2]", "rate takes one value"),
        ("quiet: maybe", "expected true or false"),
        ("rate: 1\nrate: 2", "says rate twice"),
        ("- rate", "expected options and their values, got list"),
        ("", "expected options and their values, got NoneType"),
        ("rate: [", "is not YAML"),
        ("base: mine", "files say `base` one after the other"),
        ("base: internvl2_2b_23k", "did you mean 'internvl2_2b_32k'?"),
        ("base: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_wrong_config_file_is_explained(parser, content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        parser.parse_args([str(path)])
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_names_that_are_near_are_suggested():
    assert did_you_mean("Max-Steps", ["max_steps", "seed"]) == ", did you mean 'max_steps'?"
    assert did_you_mean("xyz", ["max_steps"]) == ""
    assert did_you_mean("--strid", ["--seed", "--rope_pos_id_stride"]) == ", did you mean '--rope_pos_id_stride'?"


def test_a_recipe_is_found_in_any_folder_and_a_misspelt_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config(Path("tiny.yaml")) == read_config(Path("examples/tiny.yaml"))
    with pytest.raises(ConfigError, match=r"no such file, did you mean 'tiny\.yaml'"):
        read_config(Path("tinny.yaml"))


# v2pe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean 'train'?"),
        (["data"], "it takes one of check, "),
        (["data", "chekc"], "did you mean 'data check'?"),
        (["zzz"], "v2pe has no command 'zzz'; v2pe --help lists them"),
    ],
)
def test_an_unknown_command_is_explained(words, message):
    with pytest.raises(ConfigError) as error:
        find_command(words)
    assert message in str(error.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_takes(name):
    """Under its own name, and with the help of `python -m`."""
    command = [warm_python(), "-m", "internvl.cli", *name.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: v2pe {name}")


def test_processes_are_started_by_torchrun(monkeypatch):
    from internvl import cli

    started = []
    monkeypatch.setattr(os, "execv", lambda path, words: started.append(words) or sys.exit(0))
    with pytest.raises(SystemExit):
        cli.main(["eval", "--processes", "2", "--tasks", "pope"])
    assert started[0][1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "eval.run", "--tasks", "pope")
    ]
    assert cli.main(["score", "--processes", "2"]) == 2
    assert cli.main(["train", "--processes", "x"]) == 2


# Completion


TRIALS = (("tra", "train"), ("data ch", "check"), ("score --pro", "--protocol"))
# What a shell offers for a line that was typed so far; SCRIPT is what v2pe printed for it.
BASH = 'source SCRIPT; COMP_WORDS=(v2pe LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _v2pe; echo "${COMPREPLY[@]}"'
ZSH = (
    "autoload -U compinit && compinit -u -d DUMP; source SCRIPT; emulate -L sh; "
    'COMP_WORDS=(v2pe LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _v2pe; echo "${COMPREPLY[@]}"'
)
FISH = 'source SCRIPT; complete --do-complete "v2pe LINE"'


@pytest.mark.parametrize(("shell", "code"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)])
def test_a_shell_completes_commands_and_options(tmp_path, shell, code):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "v2pe"
    program.write_text(f'#!/bin/sh\nexec {warm_python()} -m internvl.cli "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "completion"
    script.write_text(write_completion([shell]))
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    for line, word in TRIALS:
        typed = code.replace("SCRIPT", str(script)).replace("DUMP", str(tmp_path / "dump")).replace("LINE", line)
        done = subprocess.run([shell, "-c", typed], capture_output=True, text=True, env=environ, check=False)
        assert word in done.stdout.split(), done.stderr  # fish offers files, too


def test_options_are_asked_for_once(monkeypatch):
    from internvl import cli

    asked = []
    monkeypatch.setattr(cli, "_ask_for_flags", lambda module: asked.append(module) or ["--checkpoint", "--tasks"])
    assert (
        cli.list_words(["eval"], "--t") == cli.list_words(["eval", "--tasks", "a"], "-") == ["--checkpoint", "--tasks"]
    )
    assert asked == ["eval.run"]
    assert cli.list_words(["eval"], "file") == []


def test_what_needs_no_model_imports_none():
    """So that completion and the list of commands come at once."""
    code = "import sys, internvl.cli; internvl.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("shell", ["", "bahs"])
def test_an_unknown_shell_is_explained(shell):
    with pytest.raises(ConfigError, match="expected bash, zsh, fish"):
        write_completion([shell])
