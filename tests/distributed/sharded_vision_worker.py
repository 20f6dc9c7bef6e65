"""Sharded vision on every rank of a world; rank 0 writes what all ranks found to argv[1] as json."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.visual_features import merge_visual_features
from internvl.parallel.grid import Grid, build_grid
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.parallel.vision import agree_on_batches, exchange_features, locate_wanted, split_tiles
from tests.model.tiny import VISUAL, document, tiny_model

SIZES = [(2, 1), (4, 1), (4, 2)]  # chunk_num, ulysses_degree
ROWS = {  # tiles of every image; words between images
    "images everywhere": ((2, 1, 3, 1), 5),
    "fewer tiles than ranks": ((1,), 9),
    "images at the end": ((3, 3), 1),
    "no image": ((), 30),
}
VARIANTS = [(None, ""), (1, ""), (1, "vision_model"), (None, "vision_model mlp1")]  # vit_batch_size, frozen parts


def forward_whole(model: InternVLChatModel, ids: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """A loss that depends on every entry of the merged embeddings."""
    embeds = model.get_input_embeddings()(ids.unsqueeze(0))
    merged = merge_visual_features(embeds, ids.unsqueeze(0) == VISUAL, model.extract_feature(pixels))
    return (merged.sin() * weight).sum()


def forward_shard(
    model: InternVLChatModel, ids: Tensor, pixels: Tensor, weight: Tensor, grid: Grid
) -> tuple[Tensor, dict[str, int]]:
    """This rank's part of the same loss, and what it had to do for it."""
    owners = split_tiles(len(pixels), grid.group_size)
    own_tiles = owners[grid.group_rank]
    num_batches = None
    if model.vit_batch_size:
        num_batches = agree_on_batches(len(own_tiles), model.vit_batch_size)
    features = model.extract_feature(pixels[own_tiles.start : own_tiles.stop], num_batches=num_batches)
    wanted = locate_wanted(ids == VISUAL, shape=grid.shape)
    received = exchange_features(features, owner_ranges=owners, wanted=wanted, group=grid.group)
    shard = grid.shard(ids).unsqueeze(0)
    merged = merge_visual_features(model.get_input_embeddings()(shard), shard == VISUAL, received)
    counts = {"tiles": len(own_tiles), "received": len(received), "own_visual_tokens": int((shard == VISUAL).sum())}
    return (merged.sin() * grid.shard(weight, dim=1)).sum(), counts


def take_gradients(model: InternVLChatModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(grid: Grid, row: str, *, vit_batch_size: int | None, frozen: str) -> dict[str, float]:
    """Errors of loss and gradients relative to each tensor's largest entry, and how the work was spread."""
    tiles, text = ROWS[row]
    model = tiny_model().train()
    for part in frozen.split():
        model.get_submodule(part).requires_grad_(False)
    ids, pixels = document(grid.data_rank, tiles=tiles, text=text)
    weight = torch.randn(1, len(ids), 32, generator=torch.Generator().manual_seed(grid.data_rank))
    expected_loss = forward_whole(model, ids, pixels, weight)
    expected = take_gradients(model, expected_loss)
    model.vit_batch_size = vit_batch_size
    loss, counts = forward_shard(model, ids, pixels, weight, grid)
    found = take_gradients(model, loss)
    if found.keys() != expected.keys():
        raise AssertionError(f"rank {grid.rank} lacks gradients of {expected.keys() - found.keys()}")
    summed = flatten(loss, found, expected)
    dist.all_reduce(summed, group=grid.group)
    return {
        "error": float((summed - flatten(expected_loss, expected, expected)).abs().max()),
        "not its own": abs(counts["received"] - counts["own_visual_tokens"]),
        "without tiles": float(counts["tiles"] == 0),
        "without visual tokens": float(counts["received"] == 0),
    }


def flatten(loss: Tensor, grads: dict[str, Tensor], scales: dict[str, Tensor]) -> Tensor:
    """The loss, and every gradient in units of the largest entry of its namesake in `scales`."""
    scaled = [grads[name] / scale.abs().max().clamp(min=1e-3) for name, scale in scales.items()]
    return torch.cat([loss.detach().reshape(1), *(grad.flatten() for grad in scaled)])


def refuse_wrong_count(grid: Grid) -> str:
    """Every rank finds out that a tile is missing, none waits for the others."""
    ids, pixels = document(0, tiles=(2, 3))
    try:
        forward_shard(tiny_model(), ids, pixels[:-1], torch.ones(1, len(ids), 32), grid)
    except ValueError as error:
        return str(error)
    return "no error"


def worst_of_all_ranks(numbers: dict[str, float]) -> dict[str, float]:
    values = torch.tensor(list(numbers.values()), dtype=torch.float64).nan_to_num(torch.inf)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return dict(zip(numbers, values.tolist(), strict=True))


def main(output: Path) -> None:
    init_distributed(read_rank_env(), device="cpu", timeout_s=60)
    results, refusals = {}, []
    for chunk_num, degree in SIZES:
        grid = build_grid(chunk_num=chunk_num, ulysses_degree=degree)
        refusals.append(refuse_wrong_count(grid))
        for row in ROWS:
            for vit_batch_size, frozen in VARIANTS:
                case = f"{chunk_num}/{degree} {row}, batches of {vit_batch_size}, frozen {frozen or 'nothing'}"
                numbers = compare(grid, row, vit_batch_size=vit_batch_size, frozen=frozen)
                results[case] = worst_of_all_ranks(numbers)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, refusals)
    if dist.get_rank() == 0:
        output.write_text(json.dumps({"cases": results, "refusals": everyone}))
    finish_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
