"""Functions that are one kernel on CUDA: what torch.compile makes of them, seen on the CPU, equals them."""

import logging

import pytest
import torch
from packaging.version import Version

from internvl.model.fused import CompiledOnCuda
from internvl.model.modeling_internlm2 import gated_silu, gated_silu_backward
from internvl.model.rotary import rotate


def make_arguments(name, length, dtype):
    generator = torch.Generator().manual_seed(length)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if name == "rotate":
        return make(2, 3, length, 16).to(dtype), make(1, 1, length, 8), make(1, 1, length, 8)
    return [make(2, length, 48).to(dtype) for _ in range(2 if name == "gated_silu" else 3)]


FUNCTIONS = {function.function.__name__: function for function in (gated_silu, gated_silu_backward, rotate)}


def assert_compiles(name, backend, atol):
    """One graph without a break, and no new one for another length."""
    torch._dynamo.reset()
    function = FUNCTIONS[name].function
    compiled = torch.compile(function, dynamic=True, fullgraph=True, backend=backend)
    for length in (33, 70, 4):
        with torch.compiler.set_stance("default" if length == 33 else "fail_on_recompile"):
            arguments = make_arguments(name, length, torch.bfloat16)
            torch.testing.assert_close(compiled(*arguments), function(*arguments), atol=atol, rtol=2**-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_one_graph_for_all_lengths(name):
    one_rounding_more = Version(torch.__version__) < Version("2.9")  # in its derivative of silu
    assert_compiles(name, "aot_eager", atol=2**-6 if one_rounding_more else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_functions_are_equal_within_rounding(name):
    from torch._inductor import metrics

    from tests.cuda_without_a_card.worker import find_compiler

    if find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    metrics.reset()
    assert_compiles(name, "inductor", atol=2**-6)
    assert metrics.generated_kernel_count <= 2  # on a CPU; the rotation's two halves are loops of their own


class OnCuda(torch.Tensor):
    is_cuda = True


def test_a_function_that_cannot_be_compiled_runs_as_written_after_a_warning(monkeypatch, caplog):
    calls = []

    def fail(*_):
        calls.append("compiled")
        raise torch._dynamo.exc.BackendCompilerFailed(fail, RuntimeError("no C compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fail)
    double = CompiledOnCuda(lambda x: 2 * x)
    with caplog.at_level(logging.WARNING):
        results = [double(torch.ones(1).as_subclass(OnCuda)).item() for _ in range(2)]
    assert results == [2, 2]
    assert calls == ["compiled"]
    assert "no C compiler" in caplog.text


def test_nothing_is_compiled_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert gated_silu(*make_arguments("gated_silu", 5, torch.float32)).shape == (2, 5, 48)
