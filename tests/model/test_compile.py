"""torch.compile of decoder layers, with the backend that only traces (no C++ compiler, seconds instead of minutes)."""

import copy
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import nn

from internvl.model.configuration_internvl_chat import InternLM2Config
from internvl.model.modeling_internlm2 import InternLM2ForCausalLM


@pytest.fixture(autouse=True)
def unchecked_shapes() -> Iterator[None]:
    """Tracing would enter the checks of shapes and types, which products do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_compiled_layers_equal_eager_ones_for_rows_of_any_documents_and_fractional_positions():
    torch.manual_seed(0)
    config = InternLM2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        bias=False,
        rope_scaling=None,
    )
    eager = InternLM2ForCausalLM(config)
    compiled = copy.deepcopy(eager)
    compiled.model.layers = nn.ModuleList(
        torch.compile(layer, backend="aot_eager")
        for layer in compiled.model.layers  # type: ignore[misc]
    )
    for lengths in ([5, 7], [3, 9, 4]):  # the second row has another length: dynamic shapes
        row = {
            "input_ids": torch.randint(0, 32, (1, sum(lengths))),
            "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
            "position_ids": torch.arange(sum(lengths)).unsqueeze(0) * 0.25,
        }
        for model in (eager, compiled):
            model.zero_grad()
            model(**row).logits.square().sum().backward()
        torch.testing.assert_close(compiled(**row).logits, eager(**row).logits)
        for expected, got in zip(eager.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
