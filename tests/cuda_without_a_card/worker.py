"""A process whose torch takes tensors on `cuda` although there is no card: it loads fake_cuda.cpp before torch."""

import ctypes
import importlib.util
import shutil
import subprocess
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def torch_folder() -> Path:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return Path(str(spec.origin)).parent


def find_compiler() -> str | None:
    """A C++ compiler, if there is one."""
    return next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)


def compile_fake_cuda(compiler: str, folder: Path) -> Path:
    """The library, in `folder`."""
    library, torch = folder / "fake_cuda.so", torch_folder()
    links = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    options = ["-O0", "-shared", "-fPIC", "-std=c++20", f"-I{torch / 'include'}"]
    subprocess.run([compiler, *options, str(SOURCE), "-o", str(library), *links], check=True, capture_output=True)
    return library


def load_fake_cuda(library: Path) -> None:
    """Give this process the device. Must come before torch."""
    for path in (torch_folder() / "lib" / "libc10.so", torch_folder() / "lib" / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def start_worker(library: Path) -> ProcessPoolExecutor:
    """One process, which runs functions that are importable by name."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=load_fake_cuda, initargs=(library,))


def call(function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """In the worker: an error becomes its text, since not every one can be sent."""
    try:
        return function(*args, **kwargs)
    except Exception:
        raise RuntimeError(traceback.format_exc()) from None
