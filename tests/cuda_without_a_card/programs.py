"""What is run on a device that is not there. Every function is called in the worker, and returns plain numbers."""

import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from internvl.model.attention import _attend_documents, attend, send_borders
from internvl.model.modeling_intern_vit import InternRMSNorm
from internvl.model.modeling_internlm2 import InternLM2RMSNorm
from internvl.parallel.grid import build_grid
from internvl.parallel.kernels import FlashAttn
from internvl.parallel.ring import ring_attention
from internvl.parallel.shared_row import SHARED_ATTENTION, register_shared_attention
from tests.model.tiny import VISUAL, document, tiny_model

from .pretend import Counts, PretendedCuda

V2PE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.5}


def load_model(cuda: PretendedCuda, **llm):
    """A tiny model in bfloat16, whose heads flash kernels take."""
    return cuda.move(tiny_model(**llm).to(torch.bfloat16))


def packed_row(lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """A row of documents with one image each, and `lengths` words before and after it."""
    documents = [document(seed, tiles=(1,), text=length) for seed, length in enumerate(lengths)]
    ids = torch.cat([ids for ids, _ in documents]).unsqueeze(0)
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(ids == VISUAL, -100),
        "pixel_values": torch.cat([pixels for _, pixels in documents]).bfloat16(),
        "cu_seqlens": torch.tensor([0, *(len(ids) for ids, _ in documents)]).cumsum(0),
    }


def train(num_layers: int, *, num_steps: int = 1, is_ring: bool = False, **llm) -> list[Counts]:
    """Counts of every step; its documents, and their number, were not there before."""
    found = []
    with PretendedCuda() as cuda:
        model = load_model(cuda, num_hidden_layers=num_layers, **llm).train()
        if is_ring:
            register_shared_attention(build_grid())
            model.language_model.config._attn_implementation = SHARED_ATTENTION
        for number in range(num_steps):
            row = packed_row(range(4 + number, 7 + 2 * number))
            borders = row.pop("cu_seqlens")
            row = {name: x.to("cuda") for name, x in row.items()}
            cuda.restart()
            model(**row, cu_seqlens=borders, use_cache=False, **V2PE).loss.backward()
            found.append(cuda.counts)
    return found


def generate(num_layers: int, *, num_prompts: int = 1, num_new_tokens: int = 4, **options) -> Counts:
    """Counts of a whole `generate`; several prompts are of different lengths."""
    llm = options.pop("llm", {})
    with PretendedCuda() as cuda, torch.no_grad():
        model = load_model(cuda, num_hidden_layers=num_layers, **llm)
        ids = torch.randint(3, 50, (num_prompts, 40), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1:, :7] = 0
        ids, mask = ids.to("cuda"), mask.to("cuda")
        cuda.restart()
        model.generate(
            input_ids=ids,
            attention_mask=mask if num_prompts > 1 else None,
            max_new_tokens=num_new_tokens,
            do_sample=False,
            eos_token_id=63,
            pad_token_id=0,
            **V2PE,
            **options,
        )
        return cuda.counts


def make_states(batch: int, num_queries: int, num_keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries of 4 heads, keys and values of 2, and a gradient, as bfloat16 has them."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 4, num_queries, 16), *2 * [(batch, 2, num_keys, 16)], (batch, 4, num_queries, 16)]
    return [torch.randn(*shape, generator=generator).bfloat16().to(dtype) for shape in shapes]


def compare_with_cpu(
    *, batch: int = 1, queries: int, keys: int, borders: Sequence[int] | None = None, mask: Sequence | None = None
) -> list[float]:
    """Largest difference of output, dq, dk and dv between the seam on CUDA (bfloat16) and on the CPU (float32)."""
    options = {
        "scaling": 0.25,
        "cu_seqlens": None if borders is None else torch.tensor(borders),
        "attention_mask": None if mask is None else torch.tensor(mask),
    }
    *cpu, cpu_grad = make_states(batch, queries, keys, torch.float32)
    for x in cpu:
        x.requires_grad_()
    expected = attend(None, *cpu, **options)
    expected_grads = torch.autograd.grad(expected, cpu, cpu_grad)
    with PretendedCuda() as cuda:
        *states, grad = (cuda.put(x) for x in make_states(batch, queries, keys, torch.bfloat16))
        for x in states:
            x.requires_grad_()
        out = attend(None, *states, **options)
        grads = torch.autograd.grad(out, states, grad)
        assert cuda.counts.attention.total() == 1
        results = [x.detach().cpu().float() for x in (out, *grads)]
    pairs = zip(results, (expected, *expected_grads), strict=True)
    return [float((a - b.detach()).abs().max()) for a, b in pairs]


def find_devices_of_fakes(borders: Sequence[int]) -> set[str]:
    """Devices of what the kernels' own shape functions return, forward and backward, for a row and for a chunk."""
    send_borders.cache_clear()
    capability, torch.cuda.get_device_capability = torch.cuda.get_device_capability, lambda device=None: (9, 0)
    with torch.autograd.set_multithreading_enabled(False), FakeTensorMode():
        options = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
        row = [torch.empty(borders[-1], heads, 64, **options) for heads in (4, 2, 2)]
        chunk = [torch.empty(1, heads, n, 64, **options) for heads, n in ((4, 8), (2, 40), (2, 40))]
        packed = [x.unsqueeze(0).transpose(1, 2) for x in row]
        outs = [
            ring_attention(*row, cu_seqlens=borders, group=None),
            _attend_documents(*packed, 0.1, borders),
            attend(None, *chunk, scaling=0.1),
        ]
        for out in outs:
            out.sum().backward()
        found = {x.device.type for x in (*outs, *(x.grad for x in (*row, *chunk)))}
    torch.cuda.get_device_capability = capability
    send_borders.cache_clear()
    return found


def compare_norms() -> list[float]:
    """Largest difference of output and gradients between RMS norms on CUDA and on the CPU, decoder's and tower's."""
    generator = torch.Generator().manual_seed(0)
    states, grad = (torch.randn(2, 9, 32, generator=generator).bfloat16() for _ in range(2))
    differences = []
    for norm in (InternLM2RMSNorm(32, 1e-5), InternRMSNorm(32, 1e-5)):
        norm = norm.bfloat16()
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        x = states.clone().requires_grad_()
        expected = [norm(x), *torch.autograd.grad(norm(x), [x, norm.weight], grad)]
        with PretendedCuda() as cuda:
            moved = cuda.move(norm)
            x = cuda.put(states).requires_grad_()
            # Which a torch without CUDA takes apart before anybody sees it.
            with patch.object(F, "rms_norm", wraps=F.rms_norm) as fused:
                out = moved(x)
            fused.assert_called_once()
            grads = torch.autograd.grad(out, [x, moved.weight], cuda.put(grad))
            results = [y.detach().cpu() for y in (out, *grads)]
        differences += [float((a - b.detach()).abs().max()) for a, b in zip(results, expected, strict=True)]
    return differences


def run_flash_attn(interface: str, borders: tuple[int, ...] | None) -> tuple[tuple, tuple, list[tuple]]:
    """Shapes of output, log-sum-exp (with dtype and device) and gradients, by flash-attn's own shape functions."""
    sys.modules["flash_attn_2_cuda"] = ModuleType("flash_attn_2_cuda")  # the compiled kernels, which are not called
    spec = importlib.util.spec_from_file_location("flash_attn_interface_of_sdist", interface)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    kernel = FlashAttn(module)
    send_borders.cache_clear()
    with FakeTensorMode():
        options = {"device": "cuda", "dtype": torch.bfloat16}
        q = torch.empty(64, 16, 128, **options)
        k = torch.empty(40 if borders is None else 64, 8, 128, **options)
        out, lse = kernel.forward(q, k, k, scale=0.1, borders=borders)
        grads = kernel.backward(out, q, k, k, out, lse, scale=0.1, borders=borders)
    send_borders.cache_clear()
    return tuple(out.shape), (tuple(lse.shape), str(lse.dtype), lse.device.type), [tuple(grad.shape) for grad in grads]


def encode_tiles(vit_batch_size: int | None) -> Counts:
    """Counts of the vision tower on seven tiles of pixels, forward and backward."""
    pixels = torch.randint(0, 256, (7, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with PretendedCuda() as cuda:
        model = load_model(cuda).train()
        model.vit_batch_size = vit_batch_size
        tiles = cuda.put(pixels)
        cuda.restart()
        model.extract_feature(tiles).sum().backward()
        return cuda.counts
