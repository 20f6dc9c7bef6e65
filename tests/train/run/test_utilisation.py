import pytest
import torch

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.train.arguments import ModelArguments
from internvl.train.run.counts import Counts
from internvl.train.run.utilisation import Workload, find_peak_tflops

CONFIG = InternVLChatConfig(
    vision_config={
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    },
    llm_config={
        "architectures": ["InternLM2ForCausalLM"],
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
)


def make_counts(*, lengths=(), targets=0, tiles=0):
    values = {
        "rows": 1,
        "samples": len(lengths),
        "tokens": sum(lengths),
        "targets": targets,
        "tiles": tiles,
        "pairs": sum(sum(range(1, length + 1)) for length in lengths),
    }
    return Counts.from_json(values, ())


def count(counts, **frozen):
    return Workload(CONFIG, ModelArguments(**frozen)).count_flops(counts)


def decoder_forward(lengths):
    """By hand: two FLOPs per weight and token; scores and their product with the values for every pair of tokens."""
    per_layer = 32 * (4 + 2 * 2) * 8 + 32 * 32 + 3 * 32 * 48
    attention = sum(2 * 2 * 32 * sum(1 for query in range(n) for _ in range(query + 1)) for n in lengths)
    return 3 * (2 * per_layer * sum(lengths) + attention)


def vision_forward(tiles):
    """By hand: 16 patches and the class token; whole squares of scores; 4 visual tokens of 64 numbers projected."""
    patches = 2 * 16 * 3 * 7 * 7 * 16
    layer = 17 * 2 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * 2 * 17 * 17 * 16
    projector = 4 * 2 * (64 * 32 + 32 * 32)
    return tiles * (patches + 2 * layer), tiles * projector


def test_training_everything_is_three_forward_passes():
    lengths, targets, tiles = (9, 20, 3), 11, 2
    forward = decoder_forward(lengths) + sum(vision_forward(tiles)) + 2 * 32 * 100 * targets
    assert count(make_counts(lengths=lengths, targets=targets, tiles=tiles)) == 3 * forward


def test_attention_is_counted_by_document_and_not_by_row():
    together, apart = count(make_counts(lengths=(64,))), count(make_counts(lengths=(32, 32)))
    assert together - apart == 3 * 3 * 4 * 32 * 32 * 32


def test_frozen_parts_need_no_gradients_of_their_own():
    tower, projector = vision_forward(2)
    counts = make_counts(tiles=2)
    assert count(counts, freeze_backbone=True) == tower + 2 * projector  # nothing before it wants a gradient
    assert count(counts, freeze_llm=True) == 3 * (tower + projector)
    lengths = (9, 20)
    matrices = decoder_forward(lengths) - 3 * 4 * 32 * (45 + 210)
    assert count(make_counts(lengths=lengths), freeze_llm=True) == 2 * matrices + 3 * (
        decoder_forward(lengths) - matrices
    )


def test_utilisation_is_work_over_what_all_devices_could_do():
    counts = make_counts(lengths=(64, 10), targets=30, tiles=4)
    workload = Workload(CONFIG, ModelArguments(), peak_tflops=2e-6)
    described = workload.describe(counts, elapsed_s=4.0, num_processes=8)
    assert described["mfu"] == pytest.approx(workload.count_flops(counts) / (4 * 8 * 2e6))
    assert described["tflops_per_process"] == pytest.approx(workload.count_flops(counts) / 4 / 8 / 1e12)


def test_without_a_peak_there_is_no_utilisation():
    described = Workload(CONFIG, ModelArguments()).describe(make_counts(lengths=(5,)), elapsed_s=1.0, num_processes=1)
    assert "mfu" not in described


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce GTX 1080", None),
        ("cpu", None),
    ],
)
def test_devices_are_known_by_name(name, peak):
    assert find_peak_tflops(name) == peak


def test_counts_hold_whole_rows_of_many_documents():
    lengths = torch.randint(1, 50, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    assert make_counts(lengths=lengths)["pairs"] == sum(n * (n + 1) / 2 for n in lengths)
