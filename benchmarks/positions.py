"""Positions of a long packed row: `build_position_ids` against a token-by-token loop, as a ratio in one run.

python benchmarks/positions.py [--tokens 1048576]
"""

import argparse
import math
import time

import torch

from internvl.model.v2pe import build_position_ids

VISUAL, TOKENS_PER_TILE, TILES = 2, 256, 12


def token_by_token(ids: list[int], stride: float) -> list[float]:
    """The rule of the paper as a loop."""
    out, last, anchor, inside = [], -1.0, -1.0, 0
    for token in ids:
        if token == VISUAL:
            anchor = last if inside == 0 else anchor
            inside += 1
            last = anchor + inside * stride / TOKENS_PER_TILE
            out.append(last)
        else:
            inside = 0
            last = math.ceil(out[-1]) + 1.0 if out else 0.0
            out.append(last)
    return out


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--stride", type=float, default=64)
    args = parser.parse_args()
    block = [1] * 20 + [0] + [VISUAL] * (TILES * TOKENS_PER_TILE) + [3]
    ids = (block * (args.tokens // len(block) + 1))[: args.tokens]
    row = torch.tensor([ids])

    start = time.perf_counter()
    expected = token_by_token(ids, args.stride)
    loop_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        got = build_position_ids(row, image_token_id=VISUAL, num_image_token=TOKENS_PER_TILE, strides=args.stride)
        seconds.append(time.perf_counter() - start)
    assert got[0].tolist() == expected
    print(f"{args.tokens} tokens: loop {loop_seconds:.3f} s, vectorised {min(seconds):.3f} s, ")
    print(f"ratio {loop_seconds / min(seconds):.1f}x, equal to the last bit")


if __name__ == "__main__":
    main()
