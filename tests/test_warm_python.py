"""A process of the warm interpreter begins and ends as one of a fresh interpreter does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.warm_python import warm_python

REPORT = "import sys; print(__name__, sys.argv[1:], sys.stdin.read(), flush=True); print('note', file=sys.stderr)"
INTERPRETERS = pytest.mark.parametrize("interpreter", [warm_python, lambda: sys.executable], ids=["warm", "fresh"])


def run(python: str, *arguments: str, **options: object) -> tuple[int, str, str]:
    done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=300, **options)
    return done.returncode, done.stdout, done.stderr


@INTERPRETERS
@pytest.mark.parametrize("form", ["code", "module", "script"])
def test_arguments_input_and_output_are_its_own(interpreter, form, tmp_path):
    (tmp_path / "report.py").write_text(REPORT)
    words = {"code": ["-c", REPORT], "module": ["-m", "report"], "script": ["-u", "report.py"]}[form]
    assert run(interpreter(), *words, "a b", "", input="asked", cwd=tmp_path) == (
        0,
        "__main__ ['a b', ''] asked\n",
        "note\n",
    )


@INTERPRETERS
def test_environment_and_folder_are_those_it_is_started_with(interpreter, tmp_path):
    (tmp_path / "elsewhere.py").write_text("")
    code = "import os, elsewhere; print(os.getcwd(), os.environ['ONLY'], len(os.environ) < 6)"
    environ = {"ONLY": "this", "PYTHONPATH": str(tmp_path)}
    assert run(interpreter(), "-c", code, cwd="/", env=environ) == (0, "/ this True\n", "")


@INTERPRETERS
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('a word')", 1),
        ("raise SystemExit", 0),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", -2),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
    ],
)
def test_it_ends_with_the_status_of_the_program(interpreter, code, status):
    assert run(interpreter(), "-c", code)[0] == status


@INTERPRETERS
def test_what_is_to_be_done_at_its_end_is_done(interpreter):
    code = """
import atexit, multiprocessing, sys, threading, time
atexit.register(print, "at exit")
multiprocessing.get_context("fork").Process(target=time.sleep, args=[600], daemon=True).start()
threading.Thread(target=lambda: time.sleep(0.2) or print("thread")).start()
sys.stdout.write("unflushed ")
sys.exit("status")
"""
    assert run(interpreter(), "-c", code) == (1, "unflushed thread\nat exit\n", "status\n")


@INTERPRETERS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_program(interpreter, number):
    code = "import os, signal, time; signal.signal(2, signal.default_int_handler); print(os.getpid(), flush=True)"
    process = subprocess.Popen(
        [interpreter(), "-c", f"{code}; time.sleep(600)"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    program = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{program}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
