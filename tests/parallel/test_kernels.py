"""Kernels on one process: numbers against float64, argument contracts of those that need a GPU through doubles."""

import sys
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
import torch

from internvl.errors import ConfigError, MissingDependencyError
from internvl.parallel.kernels import Blocks, CpuFlash, CudaFlash, FlashAttn, activate_flash, select_kernel
from internvl.parallel.ring import import_library, merge_partial, ring_attention

from .packed_attention import (
    CustomOp,
    attend_with_gradients,
    double_of_aten_backward,
    double_of_aten_forward,
    double_of_flash_attn_2_6,
    double_of_flash_attn_2_8,
    make_row,
    reference_attention,
)

LENGTHS = [1, 30, 5, 1, 16]
CPU = torch.device("cpu")
CUDA = torch.device("cuda")
DOUBLES = {
    "torch": CudaFlash(double_of_aten_forward, double_of_aten_backward),
    "flash-attn 2.6": FlashAttn(double_of_flash_attn_2_6()),
    "flash-attn 2.8": FlashAttn(double_of_flash_attn_2_8()),
}


def largest_errors(kernel, dtype, *, lengths=LENGTHS, padding=0) -> list[float]:
    row = make_row(sum(lengths) + padding, (4, 2), 32, seed=1)
    borders = [0, *accumulate(lengths)]
    results = attend_with_gradients(
        lambda q, k, v: ring_attention(q, k, v, cu_seqlens=borders, group=None, kernel=kernel), row, dtype
    )
    expected = attend_with_gradients(
        lambda q, k, v: reference_attention(q, k, v, lengths, 32**-0.5), [x[: sum(lengths)] for x in row], torch.float64
    )
    assert all(not x[sum(lengths) :].any() for x in results)
    return [float((a[: sum(lengths)] - b).abs().max()) for a, b in zip(results, expected, strict=True)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 5e-6), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)],
)
@pytest.mark.parametrize("padding", [0, 7])
def test_one_process_needs_no_process_group(dtype, tolerance, padding):
    assert max(largest_errors(None, dtype, padding=padding)) < tolerance


@pytest.mark.parametrize("name", DOUBLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bindings_of_gpu_kernels_keep_their_contracts(name, dtype):
    assert max(largest_errors(DOUBLES[name], dtype)) < 5e-2


@pytest.mark.parametrize("kernel", [CpuFlash(), *DOUBLES.values()], ids=["cpu", *DOUBLES])
def test_blocks_of_keys_add_up_to_causal_attention(kernel):
    """Queries 16-31 see keys 0-15 as a dense block and themselves causally."""
    q, k, v, grad_out = (x.bfloat16() for x in make_row(32, (4, 2), 32, seed=2))
    late, early = slice(16, 32), slice(0, 16)
    settings = {"scale": 0.2}
    out, lse = kernel.forward(q[late], k[late], v[late], borders=(0, 16), **settings)
    merged, merged_lse = out.float(), lse.clone()
    merge_partial(merged, merged_lse, *kernel.forward(q[late], k[early], v[early], borders=None, **settings))
    whole, whole_lse = kernel.forward(q, k, v, borders=(0, 32), **settings)
    torch.testing.assert_close(merged, whole[late].float(), atol=2e-2, rtol=0)
    torch.testing.assert_close(merged_lse, whole_lse[:, late], atol=1e-3, rtol=0)

    shared = (grad_out[late], q[late]), (merged.bfloat16(), merged_lse)
    dq, _, _ = kernel.backward(*shared[0], k[late], v[late], *shared[1], borders=(0, 16), **settings)
    more_dq, dk, dv = kernel.backward(*shared[0], k[early], v[early], *shared[1], borders=None, **settings)
    whole_dq, _, _ = kernel.backward(grad_out, q, k, v, whole, whole_lse, borders=(0, 32), **settings)
    torch.testing.assert_close((dq + more_dq).float(), whole_dq[late].float(), atol=2e-2, rtol=0)
    assert dk.shape == dv.shape == (16, 2, 32)


@pytest.mark.parametrize("kernel", [CpuFlash(), *DOUBLES.values()], ids=["cpu", *DOUBLES])
def test_blocks_in_one_call_equal_a_call_each(kernel):
    q, k, v, grad_out = (x.bfloat16() for x in make_row(32, (4, 2), 32, seed=2))
    borders, settings = Blocks((0, 5, 21, 32), (0, 16, 17, 32)), {"scale": 0.2}
    out, lse = kernel.forward(q, k, v, borders=borders, **settings)
    grads = kernel.backward(grad_out, q, k, v, out, lse, borders=borders, **settings)
    for own, keys in zip(
        *([slice(a, b) for a, b in pairwise(x)] for x in (borders.queries, borders.keys)), strict=True
    ):
        own_out, own_lse = kernel.forward(q[own], k[keys], v[keys], borders=None, **settings)
        of_block = (out[own], lse[:, own])
        own_grads = kernel.backward(grad_out[own], q[own], k[keys], v[keys], *of_block, borders=None, **settings)
        torch.testing.assert_close((out[own], lse[:, own]), (own_out, own_lse))
        torch.testing.assert_close((grads[0][own], grads[1][keys], grads[2][keys]), tuple(own_grads))


@pytest.mark.parametrize(
    "borders", [None, (0, 5, 16), Blocks((0, 5, 16), (0, 23, 24))], ids=["dense", "packed", "blocks"]
)
def test_torchs_own_operators_take_what_the_binding_passes(borders):
    """The real operators of the installed torch, on tensors without data."""
    q = torch.zeros(16, 4, 32, dtype=torch.bfloat16, device="meta")
    k = torch.zeros(16 if isinstance(borders, tuple) else 24, 2, 32, dtype=torch.bfloat16, device="meta")
    out, lse = CudaFlash().forward(q, k, k, scale=0.1, borders=borders)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (4, 16), torch.float32)
    grads = CudaFlash().backward(out, q, k, k, out, lse, scale=0.1, borders=borders)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, k.shape]


def test_merging_never_overflows():
    out, lse = torch.zeros(1, 2, 3), torch.tensor([[-torch.inf], [500.0]])
    merge_partial(out, lse, torch.ones(1, 2, 3), torch.tensor([[1e4], [-1e4]]))
    assert out[0, 0].tolist() == [1, 1, 1]  # nothing was seen before
    assert out[0, 1].tolist() == [0, 0, 0]  # the block weighs nothing
    assert lse.tolist() == [[1e4], [500.0]]


def test_merging_nothing_with_nothing_is_nothing():
    out, lse = torch.zeros(1, 1, 3), torch.full((1, 1), -torch.inf)
    merge_partial(out, lse, torch.zeros(1, 1, 3), torch.full((1, 1), -torch.inf))
    assert out.tolist() == [[[0, 0, 0]]]
    assert lse.tolist() == [[-torch.inf]]


def test_the_device_chooses_torchs_own_kernel():
    assert isinstance(select_kernel(None, CPU, torch.float32), CpuFlash)
    assert isinstance(select_kernel(None, CUDA, torch.bfloat16), CudaFlash)
    assert isinstance(select_kernel("cuda_flash", CUDA, torch.float16), CudaFlash)


def test_float32_on_a_gpu_names_the_flag():
    for name in (None, "cuda_flash", "flash_attn"):
        with pytest.raises(ConfigError, match="got float32; pass --bf16 True"):
            select_kernel(name, CUDA, torch.float32)


def test_a_kernel_for_another_device_is_refused():
    with pytest.raises(ConfigError, match="needs cuda tensors, got cpu"):
        select_kernel("flash_attn", CPU, torch.bfloat16)
    with pytest.raises(ConfigError, match="unknown attention kernel 'flsh'"):
        select_kernel("flsh", CPU, torch.bfloat16)


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(MissingDependencyError, match="pip install flash-attn"):
        select_kernel("flash_attn", CUDA, torch.bfloat16)


@pytest.mark.skipif(not hasattr(torch.nn.attention, "activate_flash_attention_impl"), reason="this torch has only one")
def test_other_flash_implementations_are_activated_by_name(monkeypatch):
    with pytest.raises(ConfigError, match="flash implementation 'FA1': expected one of FA3, FA4"):
        activate_flash("FA1")
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    with pytest.raises(MissingDependencyError, match="flash implementation FA3 cannot be imported"):
        activate_flash("FA3")


def test_head_dims_that_flash_kernels_do_not_take_are_refused():
    q = torch.zeros(4, 1, 36, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="multiple of 8, up to 256; this model has 36"):
        ring_attention(q, q, q, cu_seqlens=[0, 4], group=None, kernel=DOUBLES["torch"])


@pytest.mark.parametrize("missing", ["new_argument", "softmax_scale"])
def test_a_flash_attn_with_other_arguments_is_refused(missing):
    def with_more(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, new_argument):
        pytest.fail("called")

    def with_less(q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        pytest.fail("called")

    function = with_more if missing == "new_argument" else with_less
    kernel = FlashAttn(SimpleNamespace(_flash_attn_varlen_forward=CustomOp(function)))
    with pytest.raises(MissingDependencyError, match=missing if function is with_more else "k, v"):
        largest_errors(kernel, torch.bfloat16)


def test_the_library_ring_flash_attn_is_for_shared_rows_of_one_document():
    q = torch.zeros(4, 2, 32, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="2 documents and no group"):
        ring_attention(q, q, q, cu_seqlens=[0, 2, 4], group=None, kernel="ring_flash_attn")


def test_the_library_ring_flash_attn_that_cannot_be_imported_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "ring_flash_attn", None)
    with pytest.raises(MissingDependencyError, match=r"not beside 5\.23"):
        import_library()


def test_tensors_of_other_shapes_are_refused():
    q, k = torch.zeros(4, 3, 8), torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match="kv_heads dividing heads"):
        ring_attention(q, k, k, cu_seqlens=[0, 4], group=None)
