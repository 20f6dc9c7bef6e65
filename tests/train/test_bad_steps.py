import json
import math

import pytest
import torch

from internvl.data.loader import LoaderMark
from internvl.train.bad_steps import BadStep, BadSteps, MicroBatch, find_cause, spread_nan

NAN, INF = math.nan, math.inf
REFS = torch.tensor([[0, 3], [1, 4], [0, 5]])
SOURCES = ("a", "b")
MARK = LoaderMark({}, {})


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


def run_steps(tmp_path, policy, *, limit=3, bad=()):
    """What `judge` says after each of six steps, of which those in `bad` have a loss of NaN."""
    bad_steps = BadSteps(policy, limit=limit, sources=SOURCES, folder=tmp_path)
    verdicts = []
    for number in range(1, 7):
        bad_steps.begin_step(MARK, torch.tensor(2.0))
        bad_steps.note_row(MicroBatch(REFS, losses(NAN, 1.0, 1.0) if number in bad else None, torch.tensor(1.0)))
        if number in bad:
            verdicts.append(bad_steps.judge(bad_steps.name_bad_step(number)))
        else:
            bad_steps.note_good_step()
            verdicts.append(None)
    return verdicts


def test_a_run_that_stops_is_told_why_and_how_to_go_on(tmp_path):
    error = run_steps(tmp_path, "stop", bad=(3,))[2]
    assert str(error).startswith("step 3: the loss is not finite for [a, row 3]; the state before it is checkpoint-2:")
    assert "or pass --nan_policy skip, and start the same command again" in str(error)


def test_a_run_that_skips_stops_only_at_the_limit_of_bad_steps_in_a_row(tmp_path):
    assert run_steps(tmp_path, "skip", bad=(1, 2, 4, 5)) == [None] * 6
    error = run_steps(tmp_path, "skip", bad=(2, 3, 4))[3]
    assert ", as in 2 steps before it (--max_bad_steps 3); the state" in str(error)
    assert len((tmp_path / "bad_steps.jsonl").read_text().splitlines()) == 4 + 3


def test_the_state_before_a_step_is_kept_although_the_run_goes_on():
    bad_steps = BadSteps("stop", limit=1, sources=SOURCES, folder=None)
    loss_sum = torch.tensor(2.0)
    bad_steps.begin_step(MARK, loss_sum)
    drawn = torch.rand(3)
    loss_sum += 1
    assert bad_steps.before.loss_sum == 2
    bad_steps.before.generators.restore()
    assert torch.equal(torch.rand(3), drawn)
