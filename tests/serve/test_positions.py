"""Spans of positions against positions that are written out."""

import pytest
import torch

from internvl.model.v2pe import build_position_ids
from internvl.serve.positions import list_spans

IMAGE = 9
#          text      two tiles of 4      text   one tile    text
ROW = [1, 1, 1, *[IMAGE] * 8, 1, 1, *[IMAGE] * 4, 1]


@pytest.mark.parametrize("stride", [0.25, 0.3, 1, 3, 4, 64])
def test_spans_give_the_positions_back(stride):
    ids = torch.tensor(ROW)
    positions = build_position_ids(ids, image_token_id=IMAGE, num_image_token=4, strides=stride)
    spans = list_spans(positions, ids == IMAGE)
    assert [(span["kind"], span["tokens"]) for span in spans] == [
        ("text", 3), ("visual", 8), ("text", 2), ("visual", 4), ("text", 1),
    ]  # fmt: skip
    assert [span["step"] for span in spans] == pytest.approx([1, stride / 4] * 2 + [1])
    rebuilt = [span["start"] + n * span["step"] for span in spans for n in range(span["tokens"])]
    torch.testing.assert_close(torch.tensor(rebuilt, dtype=torch.float64), positions)


def test_steps_that_change_within_a_run_cut_it():
    positions = torch.tensor([0.0, 1.0, 1.5, 2.0, 4.0, 6.0, 7.0])
    visual = torch.tensor([0, 0, 1, 1, 1, 1, 0]).bool()
    assert [(s["kind"], s["tokens"], s["start"], s["step"]) for s in list_spans(positions, visual)] == [
        ("text", 2, 0.0, 1.0), ("visual", 2, 1.5, 0.5), ("visual", 2, 4.0, 2.0), ("text", 1, 7.0, 1.0),
    ]  # fmt: skip


def test_ordinary_text_is_one_span():
    assert list_spans(torch.arange(5), torch.zeros(5).bool()) == [
        {"kind": "text", "tokens": 5, "start": 0.0, "step": 1.0}
    ]
