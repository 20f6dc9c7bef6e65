"""`without_a_card(function, *args)`: the result of a function in a process that takes tensors on `cuda`."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from internvl.model.capabilities import find_varlen_attention

from .worker import call, compile_fake_cuda, find_compiler, start_worker


@pytest.fixture(scope="session")
def without_a_card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler, for the device that tests pretend to have")
    if torch.version.cuda is not None:
        pytest.skip("this torch knows CUDA, and needs no pretended device: run the gpu tests")
    if find_varlen_attention() is None:
        pytest.skip("this torch lacks varlen_attn with windows, whose operators the device pretends to have")
    library = compile_fake_cuda(compiler, tmp_path_factory.mktemp("fake_cuda"))
    with start_worker(library) as worker:
        yield lambda function, *args, **kwargs: worker.submit(call, function, *args, **kwargs).result()
