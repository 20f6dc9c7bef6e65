"""Positions of a prompt as spans: runs of tokens of one kind that advance the position by the same step.

token      a   b  <img>  v1   v2   v3   v4  </img>  c
position   0   1    2    2.5  3.0  3.5  4.0   5     6
           text, step 1 |  visual, step 0.5  | text, step 1
"""

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

_TOLERANCE = 1e-6  # of differences of positions, which are rounded


def list_spans(
    position_ids: Shaped[Tensor, " tokens"], visual: Bool[Tensor, " tokens"]
) -> list[dict[str, str | int | float]]:
    """Runs of tokens with `kind` (text or visual), `tokens`, `start` (the first position) and `step`.

    `step` is how far each token of the run is from the token before it. Only the first text token after an image
    may be further away, because text stands on whole positions; it counts as a step of 1 as well.
    """
    positions = position_ids.double()
    steps = torch.diff(positions, prepend=positions[:1] - 1)
    changes = torch.zeros_like(visual)
    changes[1:] = visual[1:] != visual[:-1]
    steps[changes & ~visual] = 1.0
    changes[1:] |= (steps[1:] - steps[:-1]).abs() > _TOLERANCE
    changes[0] = True
    first = changes.nonzero().squeeze(1)
    lengths = torch.diff(first, append=first.new_tensor([len(visual)]))
    return [
        {"kind": "visual" if is_visual else "text", "tokens": length, "start": start, "step": step}
        for is_visual, length, start, step in zip(
            visual[first].tolist(), lengths.tolist(), positions[first].tolist(), steps[first].tolist(), strict=True
        )
    ]
