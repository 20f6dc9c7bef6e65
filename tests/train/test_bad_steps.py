import json
import math

import pytest
import torch

from internvl.train.bad_steps import BadStep, MicroBatch, find_cause, spread_nan

NAN, INF = math.nan, math.inf
REFS = torch.tensor([[0, 3], [1, 4], [0, 5]])
SOURCES = ("a", "b")


def losses(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_spoils_every_gradient(value):
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    spread_nan(weight.sum() + value).backward()
    assert weight.grad.isnan().all()


def test_a_finite_loss_stays_as_it_is():
    weight = torch.tensor(1.2345, requires_grad=True)
    loss = spread_nan(weight * weight)
    loss.backward()
    assert loss == weight * weight
    assert weight.grad == 2 * weight


def test_documents_with_a_bad_loss_of_their_own_are_named_alone():
    batch = MicroBatch(REFS, losses(1.0, NAN, INF), torch.tensor(NAN))
    step = find_cause(7, batch.name_documents(), SOURCES)
    assert step == BadStep(7, "document loss", (("b", 4), ("a", 5)))


def test_a_row_with_a_bad_loss_is_named_whole_and_others_are_not():
    bad = MicroBatch(REFS[:2], losses(1.0, 1.0), torch.tensor(NAN))
    good = MicroBatch(REFS[2:], losses(1.0), torch.tensor(1.0))
    named = [*good.name_documents(), *bad.name_documents()]
    assert find_cause(1, named, SOURCES) == BadStep(1, "loss", (("a", 3), ("b", 4)))


def test_a_bad_gradient_alone_names_all_documents_of_the_step():
    batch = MicroBatch(REFS, losses(1.0, 1.0, 1.0), torch.tensor(1.0))
    step = find_cause(1, batch.name_documents(), SOURCES)
    assert step == BadStep(1, "gradient norm", (("a", 3), ("b", 4), ("a", 5)))


def test_ranks_that_share_a_row_name_a_document_once():
    ranks = [MicroBatch(REFS, losses(NAN, 1.0, 1.0)), MicroBatch(REFS, losses(NAN, 1.0, 1.0))]
    named = [entry for batch in ranks for entry in batch.name_documents()]
    assert find_cause(1, named, SOURCES).documents == (("a", 3),)


def test_losses_by_document_may_be_unknown():
    assert [cause for cause, *_ in MicroBatch(REFS, None, torch.tensor(INF)).name_documents()] == ["loss"] * 3
    assert MicroBatch(None, None, torch.tensor(INF)).name_documents() == []
    assert "unknown documents" in find_cause(1, [], SOURCES).describe()


def test_many_documents_are_counted_in_the_message_and_listed_in_the_file(tmp_path):
    step = BadStep(12, "loss", tuple(("a", row) for row in range(20)))
    assert step.describe().endswith("a, row 7; and 12 more in bad_steps.jsonl]")
    step.append_to(tmp_path)
    step.append_to(tmp_path)
    first, second = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert first == second
    assert first == {"step": 12, "cause": "loss", "documents": [{"source": "a", "row": row} for row in range(20)]}
