from collections import OrderedDict

import pytest
import torch

from internvl.train.checkpoint.background import BackgroundJobs, copy_to_main_memory


def test_an_error_ends_the_jobs_and_is_raised_where_somebody_waits():
    done = []
    jobs = BackgroundJobs([lambda: done.append(1), lambda: 1 / 0, lambda: done.append(2)])
    with pytest.raises(ZeroDivisionError):
        jobs.wait()
    assert done == [1]
    assert not jobs.are_running


def test_a_copy_keeps_values_types_and_ties_and_shares_no_memory():
    tied = torch.arange(6.0).reshape(2, 3)
    state = OrderedDict(a=tied, b=[tied, (tied[0], 3, "x")], c={"shape": tied.shape, "empty": torch.empty(0)}, d={1, 2})
    copied = copy_to_main_memory(state)
    assert type(copied) is OrderedDict
    assert copied["a"] is copied["b"][0]
    tied += 1
    state["d"].add(3)
    assert copied["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copied["b"][1][0].tolist() == [0, 1, 2]
    assert copied["b"][1][0].untyped_storage().nbytes() == 12
    assert copied["b"][1][1:] == (3, "x")
    assert copied["c"]["shape"] == torch.Size([2, 3])
    assert copied["d"] == {1, 2}


def test_copies_keep_transposed_tensors_and_dtypes():
    state = [torch.randn(4, 5).T, torch.ones(3, dtype=torch.bfloat16), torch.nn.Parameter(torch.ones(2))]
    copied = copy_to_main_memory(state)
    assert [tensor.dtype for tensor in copied] == [tensor.dtype for tensor in state]
    assert all(torch.equal(left, right) for left, right in zip(state, copied, strict=True))
    assert not copied[2].requires_grad
