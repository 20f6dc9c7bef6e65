"""A Python that has already imported what our commands need: its processes start in a tenth of a second, not in ten.

    command = [warm_python(), "-m", "eval.run", ...]        in place of [sys.executable, "-m", "eval.run", ...]

`warm_python()` is the path of a program that takes `SCRIPT`, `-m MODULE`, `-c CODE` and `-u` as Python does. Every
start is a process of its own, a fork of a server that imports when the first one is asked for and computes nothing:

    client  --arguments, environment, folder, files 0 to 2, then signals-->  server  --fork-->  the process
            <------------------------- its exit status -------------------

SIGTERM and SIGINT are passed on, and soon after its client the process ends, too. A test that is about the start itself
(imports, memory, limits), or that kills a whole group and looks at once, takes `sys.executable`.
"""

import functools
import json
import os
import signal
import socket
import sys

IMPORTED = (
    *("torch._dynamo", "torch.distributed.run", "torch.utils.tensorboard", "transformers.generation", "deepspeed"),
    *("internvl.train.finetune", "internvl.infer.session", "internvl.synth.needles.needle_set", "internvl.plan.search"),
    *("eval.check_data", "eval.run.answering", "eval.run.planning", "eval.run.queue", "eval.report.page"),
)
PASSED_ON = (signal.SIGTERM, signal.SIGINT)
MAX_WAITING = 128  # processes that are about to be forked


# In the test's process


@functools.cache
def warm_python() -> str:
    """The program's path. The first call starts the server, which ends with the process that started it.

    Processes that inherit WARM_PYTHON, the path, share the server (tests/conftest.py).
    """
    if "WARM_PYTHON" in os.environ:
        return os.environ["WARM_PYTHON"]
    import atexit
    import shlex
    import subprocess
    import tempfile
    from pathlib import Path

    folder = tempfile.TemporaryDirectory(prefix="warm-python-")
    program, address = Path(folder.name, "python"), str(Path(folder.name, "socket"))
    client = [sys.executable, "-I", "-S", __file__, "client", address]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
    program.chmod(0o755)
    root = str(Path(__file__).parents[1])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(MAX_WAITING)
        server = subprocess.Popen(
            [sys.executable, __file__, "server", str(listener.fileno()), program],
            cwd=root, env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}, pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,  # so that sys.stdout never seeks
        )  # fmt: skip
    atexit.register(folder.cleanup)
    atexit.register(server.communicate)
    return str(program)


# The client


def request(address: str, arguments: list[str]) -> int:
    """Have the server start a process; returns its exit code, or ends by the signal that ended it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
        text = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
        socket.send_fds(connection, [len(text).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(text)
        status = connection.recv(8)
    if not status:
        sys.exit(f"{__file__}: the server has ended")
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


# The server


def serve(listener: socket.socket) -> list:
    """Fork a keeper per client until standard input closes. Returns in processes only: their request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need no burial
    while True:
        wait_for_client(listener)
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            return keep(connection)
        connection.close()


def wait_for_client(listener: socket.socket) -> None:
    """Return when one asks; end when standard input closes."""
    ready, _, _ = select.select([sys.stdin, listener], [], [])
    if sys.stdin in ready:
        os._exit(0)


def keep(connection: socket.socket) -> list:
    """Fork the process that a client asks for and stand between the two until one ends. Returns in the process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words, files = receive(connection)
    pid = os.fork()
    if not pid:
        connection.close()
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        for file in files:
            os.close(file)
        return words
    for number in (0, 1, 2, *files):
        os.close(number)
    process = os.pidfd_open(pid)
    while True:
        ready, _, _ = select.select([connection, process], [], [])
        if process in ready:
            connection.send(os.waitpid(pid, 0)[1].to_bytes(8, "big"))
            os._exit(0)
        if message := connection.recv(1):
            os.kill(pid, message[0])
            continue
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it was not the leader of its group yet
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os._exit(0)


def receive(connection: socket.socket) -> tuple[list, list[int]]:
    """A request and the files that come with it."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    size, text = int.from_bytes(head, "big"), b""
    while piece := connection.recv(size - len(text)):
        text += piece
    if not size or len(text) < size:
        os._exit(0)  # the client is gone
    return json.loads(text), files


# The process

STATUS: list[int] = []  # with which it ends, when that is known


def end() -> None:
    """The last thing at its exit: end here, or Python takes a million imported objects apart, for most of a second."""
    if STATUS:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(STATUS[0])


def become(arguments: list[str], environ: dict[str, str], folder: str) -> None:
    """Run what Python runs with these arguments."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    np.random.seed()  # or all forks draw the same
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        arguments = arguments[1:]
    what, *rest = arguments
    home = {"-c": "", "-m": folder}.get(what, os.path.dirname(os.path.abspath(what)))
    sys.path[:0] = [home, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    if what == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    role, place, *words = sys.argv[1:]
    if role == "client":
        sys.exit(request(place, words))
    import atexit
    import contextlib
    import gc
    import importlib
    import runpy
    import select

    atexit.register(end)  # before what is imported registers its own

    listener = socket.socket(fileno=int(place))
    wait_for_client(listener)
    gc.disable()  # until all is imported
    root = sys.path.pop(1)
    sys.path[0] = root
    for name in IMPORTED:
        importlib.import_module(name)
    import numpy as np

    sys.path.remove(root)
    sys.executable = words[0]
    gc.freeze()  # so that collections neither look at what is imported nor copy its pages
    gc.enable()
    try:
        become(*serve(listener))
        STATUS.append(0)
    except SystemExit as error:
        STATUS.append(error.code if isinstance(error.code, int) else int(error.code is not None))
        raise
    except Exception:
        STATUS.append(1)
        raise
