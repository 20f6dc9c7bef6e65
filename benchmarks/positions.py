"""Positions of a long row: `build_position_ids` against a loop over images, and against schemes of several axes.

    python benchmarks/positions.py [--tokens 1048576 --stride 64]

The baseline is the published rule as public training code runs it: a Python loop that makes one piece per text and one
per image (text counted by a cumulative sum over the attention mask, every `</img>` checked), a list of numbers for
transport (to get around frameworks that cast the float tensors of a batch to bf16), and a tensor made from that list
before the model. The loop alone is timed as well, which shows the share of the transport. All are ratios of one run.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from internvl.model.positions import SCHEMES, has_axes
from internvl.model.positions_scheme import read_row
from internvl.model.v2pe import build_position_ids

TEXT, BEGIN, VISUAL, END = 1, 4, 2, 3
TOKENS_PER_TILE = 256


def make_row(tokens: int, text_between: int) -> Tensor:
    """(1, tokens) ids: pieces of text, each followed by an image of one tile, cut or filled up with text."""
    block = torch.tensor([TEXT] * text_between + [BEGIN] + [VISUAL] * TOKENS_PER_TILE + [END])
    images = tokens // len(block)
    tail = torch.full((tokens - images * len(block),), TEXT)
    return torch.cat([block.repeat(images), tail]).unsqueeze(0)


def loop_over_images(ids: Tensor, stride: float) -> Tensor:
    """(tokens,) float64 positions, image by image; every image has one tile."""
    row = ids[0]
    mask = torch.ones_like(row)
    begins = (row == BEGIN).nonzero().squeeze(1).tolist()
    ends = (row == END).nonzero().squeeze(1).tolist()
    delta = stride / TOKENS_PER_TILE
    pieces: list[Tensor] = []
    last, start = -1, 0
    for begin, end in zip(begins, ends, strict=True):
        piece = mask[start : begin + 1]
        text = (piece.cumsum(0) + last).masked_fill_(piece == 0, 1).to(torch.float64)
        last = int(text[-1].item())
        if row[end] != END:
            raise ValueError(f"token {end} does not close an image")
        steps = end - begin - 1
        image = torch.linspace(last + delta, last + steps * delta, steps, dtype=torch.float64)
        last = math.ceil(image[-1].item())
        pieces += [text, image]
        start = end
    piece = mask[start:]
    pieces.append((piece.cumsum(0) + last).masked_fill_(piece == 0, 1).to(torch.float64))
    return torch.cat(pieces)


def carry_as_scalars(positions: Tensor) -> Tensor:
    """Transport of public code: a list of numpy scalars -> numpy array (collator) -> tensor (model)."""
    return torch.from_numpy(np.array(list(positions.numpy())))


def carry_as_floats(positions: Tensor) -> Tensor:
    """The cheaper list: plain Python floats."""
    return torch.tensor(positions.tolist(), dtype=torch.float64)


def place_on_axes(version: str, ids: Tensor) -> Tensor:
    """(axes, 1, tokens) float64 positions of a scheme; every image has one tile."""
    row = read_row(ids, image_token_id=VISUAL, num_image_token=TOKENS_PER_TILE)
    return row.finish(SCHEMES[version].place(row))


def measure_seconds(variants: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, tuple[float, float]]:
    """(best, median) seconds of every variant; the variants take turns, so that a busy machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: (min(times), statistics.median(times)) for name, times in seconds.items()}


def main() -> None:
    """Time both, check that they agree, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--text", type=int, default=10, help="text tokens in front of every image")
    parser.add_argument("--stride", type=float, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    row = make_row(args.tokens, args.text)

    def vectorised() -> Tensor:
        return build_position_ids(row, image_token_id=VISUAL, num_image_token=TOKENS_PER_TILE, strides=args.stride)

    variants: dict[str, Callable[[], Tensor]] = {
        "loop, list of numpy scalars": lambda: carry_as_scalars(loop_over_images(row, args.stride)),
        "loop, list of Python floats": lambda: carry_as_floats(loop_over_images(row, args.stride)),
        "loop alone": lambda: loop_over_images(row, args.stride),
        "build_position_ids": lambda: vectorised()[0],
    }
    for work in variants.values():
        torch.testing.assert_close(work(), vectorised()[0], rtol=1e-15, atol=0)
    variants |= {version: partial(place_on_axes, version, row) for version in filter(has_axes, SCHEMES)}
    seconds = measure_seconds(variants, args.repeats)
    print(f"{args.tokens} tokens, {int((row == BEGIN).sum())} images, {args.threads} thread(s)")
    for name, (best, median) in seconds.items():
        ratio = best / seconds["build_position_ids"][0]
        print(f"{name:28} best {best * 1e3:7.1f} ms, median {median * 1e3:7.1f} ms, {ratio:5.1f} x build_position_ids")


if __name__ == "__main__":
    main()
