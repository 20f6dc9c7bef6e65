import math

import pytest
import torch

from internvl.model.loss import build_loss_weight
from internvl.train.step_loss import scaled_denominator

LABELS = [
    torch.tensor([[-100, 3, 4, -100, -100, 7, -100]]),
    torch.tensor([[-100, -100, 5, -100, 9, 9, 9]]),
    torch.tensor([[-100] * 7]),
    torch.tensor([[-100, 2, -100, -100, -100, -100, 1]]),
]
BORDERS = torch.tensor([0, 3, 7], dtype=torch.int32)
CROSS_ENTROPY = [torch.rand(1, 7, generator=torch.Generator().manual_seed(seed)) * 5 for seed in range(4)]


def engine_average(ranks, reduction, *, all_gather):
    """What DDP and DeepSpeed make of the losses: the mean over ranks of the sum over micro-batches."""
    weights = [[build_loss_weight(LABELS[row], BORDERS, reduction) for row in rows] for rows in ranks]
    own_sums = [torch.stack([weight.sum() for weight in rows]).sum() for rows in weights]
    world_sum = torch.stack(own_sums).sum() if all_gather else None
    losses = []
    for rank, rows in enumerate(ranks):
        denominator = scaled_denominator(own_sums[rank], world_sum, len(ranks))
        parts = [(weight * CROSS_ENTROPY[row]).sum() for row, weight in zip(rows, weights[rank], strict=True)]
        losses.append(torch.stack(parts).sum() / denominator)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
@pytest.mark.parametrize("ranks", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [3, 1]]])
def test_any_split_of_a_step_gives_the_one_formula(reduction, ranks):
    """By hand: sum over all rows of w * CE, divided by the sum of all w, w = n ** power in a document of n targets."""
    power = {"token": 0, "sample": -1, "square": -0.5}[reduction]
    documents = [(0, [1, 2]), (0, [5]), (1, [2]), (1, [4, 5, 6]), (3, [1]), (3, [6])]
    total = sum(len(at) ** power * CROSS_ENTROPY[row][0, i].item() for row, at in documents for i in at)
    weight = sum(len(at) ** (power + 1) for _, at in documents)
    assert engine_average(ranks, reduction, all_gather=True).item() == pytest.approx(total / weight, rel=1e-6)


def test_without_all_gather_every_rank_divides_by_its_own_weights():
    own = engine_average([[0], [1]], "token", all_gather=False).item()
    means = [CROSS_ENTROPY[0][0, [1, 2, 5]].mean().item(), CROSS_ENTROPY[1][0, [2, 4, 5, 6]].mean().item()]
    assert own == pytest.approx(sum(means) / 2, rel=1e-6)
    assert own != pytest.approx(engine_average([[0], [1]], "token", all_gather=True).item(), rel=1e-3)


@pytest.mark.parametrize("all_gather", [True, False])
def test_a_rank_without_targets_gives_zero_and_not_nan(all_gather):
    alone = engine_average([[2]], "square", all_gather=all_gather)
    assert alone.item() == 0
    assert math.isfinite(engine_average([[2], [0]], "square", all_gather=all_gather).item())
