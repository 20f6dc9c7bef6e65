"""How commands end: one wrapper decides, and every command of the project has it."""

import ast
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from internvl.command import command
from internvl.errors import ConfigError, DataError
from internvl.train.run.state import RepeatedFailure

ROOT = Path(__file__).parents[1]
COMMANDS = [
    path
    for folder in ("internvl", "eval", "studies")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if 'if __name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_wrapped(path):
    """And none decides for itself how it ends."""
    mains = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "main"]
    assert ["command" in ast.unparse(decorator) for main in mains for decorator in main.decorator_list].count(True) == 1
    assert "except InternVLError" not in ast.unparse(mains[0])


def run_main(body):
    """The exit code of a command that does this."""

    @command(go_on="start the same command again")
    def main(argv=None):
        return body()

    return main()


def throw(error):
    raise error


def write_too_much(tmp_path):
    """A disk's refusal as safetensors words it: the folder of the file is not there."""
    save_file({"a": torch.zeros(1)}, tmp_path / "missing" / "a.safetensors")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("got 1,\nexpected 2"), 2, "error: got 1, expected 2"),
        (DataError("broken", source="a.jsonl", row=3), 2, "error: a.jsonl, row 3: broken"),
        (RepeatedFailure("step 4 failed twice"), 86, "error: step 4 failed twice"),
        (KeyboardInterrupt(), 130, "interrupted; start the same command again"),
        (MemoryError(), 2, "error: not enough memory; remove the cause, then start the same command again"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.json"),
            2,
            "error: No space left on device: 'out/a.json'; remove the cause, then start the same command again",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            2,
            "error: Too many open files; remove the cause, then start the same command again",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/0"),
            2,
            "error: a file cannot be written, is the disk full? [enforce fail at inline_container.cc] "
            "PytorchStreamWriter failed writing file data/0; remove the cause, then start the same command again",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_is_not_a_defect_ends_with_one_line(capsys, error, code, line):
    assert run_main(lambda: throw(error)) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_file_that_another_language_cannot_write_is_named(tmp_path, capsys):
    assert run_main(lambda: write_too_much(tmp_path)) == 2
    assert capsys.readouterr().err.startswith("error: No such file or directory: ")


def test_an_error_that_a_full_disk_caused_is_the_disk_s(capsys):
    def fail():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot save") from error

    assert run_main(fail) == 2
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shape"), OSError("no number"), AssertionError()])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_main(lambda: throw(error))


def test_a_defect_met_while_a_missing_file_was_handled_keeps_its_traceback():
    def fail():
        try:
            Path("missing").read_bytes()
        except FileNotFoundError:
            raise KeyError("name")  # noqa: B904

    with pytest.raises(KeyError):
        run_main(fail)


def test_characters_that_the_terminal_lacks_are_replaced(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    @command(go_on="x")
    def main(argv=None):
        print("a 中 é \ud83d")
        raise ConfigError("no 中")

    assert main() == 2
    for stream in streams:
        stream.flush()
    assert [stream.buffer.getvalue().decode("latin-1") for stream in streams] == ["a ? é ?\n", "error: no ?\n"]


def test_sigterm_unwinds_the_command(capsys):
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def wait():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    assert run_main(wait) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM; start the same command again\n"
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_what_all_processes_of_a_machine_meet_is_said_once(monkeypatch, capsys, name):
    monkeypatch.setenv(name, "1")
    assert run_main(lambda: throw(ConfigError("--x is wrong"))) == 2
    assert run_main(lambda: throw(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""
    assert run_main(lambda: throw(DataError("broken"))) == 2
    assert capsys.readouterr().err == "error: broken\n"


SCRIPT = """
import os, sys, time
from internvl.command import command
from concurrent.futures import ProcessPoolExecutor

@command(go_on="start the same command again")
def main(argv=None):
    {body}
    return 0

if __name__ == "__main__":
    sys.exit(main())
"""
LONG_OUTPUT = "[print('line', number) for number in range(100_000)]"
SHORT_OUTPUT = "print('line')"  # reaches the pipe when the process ends
HELP = "import argparse; argparse.ArgumentParser().parse_args(['--help'])"
WORKERS = """
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(time.sleep, [0, 0]))
        print("working", flush=True)
        list(pool.map(time.sleep, [60, 60]))
"""


def start_script(tmp_path, body, **kwargs):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(body=body))
    # Unbuffered, argparse itself would meet the closed pipe, and ignore it.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, str(path)], env=env, stderr=subprocess.PIPE, preexec_fn=take_interrupts, **kwargs
    )


def take_interrupts():
    """As in the foreground of a shell: what it starts in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("body", [LONG_OUTPUT, SHORT_OUTPUT, HELP], ids=["long", "short", "help"])
def test_output_that_nobody_reads_ends_quietly(tmp_path, body):
    reader, writer = os.pipe()
    os.close(reader)
    process = start_script(tmp_path, body, stdout=writer)
    os.close(writer)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, b"interrupted"), (signal.SIGTERM, b"stopped by SIGTERM")])
def test_a_signal_to_a_command_and_its_workers_ends_with_one_line(tmp_path, number, word):
    """As a terminal sends Ctrl-C to all processes of a command."""
    process = start_script(tmp_path, WORKERS.strip(), stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"working\n"
    os.killpg(process.pid, number)
    assert process.communicate()[1] == word + b"; start the same command again\n"
    assert process.returncode == 128 + number


def test_an_interrupt_while_a_command_is_imported_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "eval.run", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=take_interrupts,
    )
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == b"interrupted\n"
    assert process.returncode == -signal.SIGINT
