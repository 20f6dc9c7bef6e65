"""Sharded vision: ranks that share a row encode each tile once and send each feature once, to where it is used.

Tiles (all of one size, so of one cost) are dealt out in order, equally many to each rank. A rank loads and encodes its
own tiles only. The visual tokens of a tile may stand in any shard of the row, so the features are exchanged once:

    tiles A, B, C of T = 4 visual tokens, words as dots, P = 2

    row           . . A0 A1 | A2 A3 B0 B1 | B2 B3 . C0 | C1 C2 C3 .
                     rank 0        rank 1       rank 1       rank 0

    encoded by    rank 0: A, B                  rank 1: C                       split_tiles
    wanted by     rank 0: A0 A1 C1 C2 C3        rank 1: A2 A3 B0 B1 B2 B3 C0    locate_wanted
    sent          rank 0 -> 1: A2 A3 B0-B3      rank 1 -> 0: C1 C2 C3           exchange_features

Gradients take the same ways back. A rank without tiles, or without visual tokens, takes part in the exchange with empty
messages, in the forward and in the backward pass: see `exchange_features`.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from internvl.parallel.comm import AutogradContext
from internvl.parallel.grid import GridShape


def split_tiles(num_tiles: int, size: int) -> list[range]:
    """Which tiles of a row each of `size` ranks encodes: consecutive ones, numbers that differ by one at most.

    7 tiles among 3 ranks: 0-2, 3-4, 5-6. Consecutive, so that few images are loaded by two ranks.
    """
    share, rest = divmod(num_tiles, size)
    borders = [rank * share + min(rank, rest) for rank in range(size + 1)]
    return [range(borders[rank], borders[rank + 1]) for rank in range(size)]


def locate_wanted(
    visual: Bool[Tensor, " length"], *, shape: GridShape, borders: Sequence[int] | None = None
) -> list[Int64[Tensor, " wanted"]]:
    """Which visual tokens of a row stand in the shard of each rank of the group.

    `visual` is True at the visual tokens of the WHOLE row, without padding; `borders` are those of its documents.

    Returns:
        Per group rank, the numbers of its visual tokens (0: the first visual token of the row), in the order of its
        shard, which is rising.
    """
    numbers = torch.where(visual, visual.cumsum(0) - 1, -1)
    shards = (shape.shard(numbers, group_rank=rank, pad_value=-1, borders=borders) for rank in range(shape.chunk_num))
    return [shard[shard >= 0] for shard in shards]


def exchange_features(
    local_features: Float[Tensor, "tiles tokens dim"],
    *,
    owner_ranges: Sequence[range],
    wanted: Sequence[Int64[Tensor, " wanted"]],
    group: dist.ProcessGroup | None,
) -> Float[Tensor, "wanted dim"]:
    """Bring the features of a row's visual tokens to the ranks that hold these tokens.

    Collective over `group`, in the forward pass and in the backward pass. So every rank must reach the backward pass:
    (1) its `local_features` require a gradient when those of the other ranks do, so a rank without tiles passes what
    `extract_feature` makes of zero tiles; (2) its loss depends on the result, so a rank without visual tokens merges
    the empty result.

    Args:
        local_features: Features of this rank's tiles, from `extract_feature`.
        owner_ranges: Tiles of each rank, from `split_tiles`.
        wanted: Visual tokens of each rank's shard, from `locate_wanted`. Every visual token is wanted by one rank.
        group: Ranks that share the row; None: this rank alone.

    Returns:
        Features of the visual tokens in this rank's shard, in order.

    Raises:
        ValueError: The text has another number of visual tokens than the tiles have features (on every rank), or
            `local_features` are not those of this rank's tiles.
    """
    rank = 0 if group is None else group.rank()
    num_tokens = local_features.shape[1]
    num_features = owner_ranges[-1].stop * num_tokens
    num_visual = sum(len(numbers) for numbers in wanted)
    if num_visual != num_features:
        raise ValueError(
            f"the text has {num_visual} visual tokens but the images give {num_features} features; "
            "every image needs <img>, T <IMG_CONTEXT> per tile, </img> in the text"
        )
    if len(local_features) != len(owner_ranges[rank]):
        raise ValueError(
            f"rank {rank} of the group owns tiles {owner_ranges[rank]} but has features of {len(local_features)} tiles"
        )
    features = rearrange(local_features, "tiles tokens dim -> (tiles tokens) dim")
    order, sent, received = _plan_routes(owner_ranges, wanted, rank=rank, num_tokens=num_tokens)
    return exchange_rows(features, order, sent=sent, received=received, group=group)


def agree_on_batches(num_tiles: int, vit_batch_size: int, *, group: dist.ProcessGroup | None = None) -> int:
    """Micro-batches (at least 1) of the vision tower that the busiest rank of the run needs. Collective over `group`.

    Under ZeRO-3 every call of the tower gathers its weights from all ranks, so all ranks must call it equally often.
    The result goes to `extract_feature` as `num_batches`.

    Args:
        num_tiles: Tiles of this rank.
        vit_batch_size: Tiles per micro-batch.
        group: All ranks, over gloo (`Grid.host_group`): the number stays on the host, and no GPU is waited for. None:
            the default group.
    """
    own = torch.tensor(max(-(-num_tiles // vit_batch_size), 1))
    if dist.is_initialized():
        dist.all_reduce(own, dist.ReduceOp.MAX, group=group)
    return int(own)


def _plan_routes(
    owner_ranges: Sequence[range], wanted: Sequence[Tensor], *, rank: int, num_tokens: int
) -> tuple[Tensor, list[int], list[int]]:
    """Rows of the local features in the order in which they are sent, numbers sent to and received from each rank."""
    # Owners hold rising ranges and wanted numbers rise, so what arrives, rank after rank, is in the shard's order.
    borders = torch.tensor([0, *(tiles.stop * num_tokens for tiles in owner_ranges)], device=wanted[rank].device)
    cuts = [torch.searchsorted(numbers, borders) for numbers in wanted]
    rows = [numbers[cut[rank] : cut[rank + 1]] - borders[rank] for numbers, cut in zip(wanted, cuts, strict=True)]
    return torch.cat(rows), [len(part) for part in rows], cuts[rank].diff().tolist()


def exchange_rows(
    x: Float[Tensor, "rows dim"],
    order: Int64[Tensor, " sent"],
    *,
    sent: Sequence[int],
    received: Sequence[int],
    group: dist.ProcessGroup | None,
) -> Float[Tensor, "received dim"]:
    """Send rows of `x` to other ranks, with a backward pass. Collective over `group`, in both.

    Args:
        x: What this rank has.
        order: Its rows in the order in which they leave: sent[0] of them to rank 0, then sent[1] to rank 1, ...
        sent, received: Numbers of rows to and from every rank.
        group: The ranks; None: this one alone.

    Returns:
        What arrives, rank after rank.
    """
    return _ExchangeRows.apply(x, order, list(sent), list(received), group)


class _ExchangeRows(torch.autograd.Function):
    """Rows of `features` go to the ranks that want them; in the backward pass, gradients of them come back."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        features: Tensor,
        rows: Tensor,
        sent: list[int],
        received: list[int],
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_features, ctx.sent, ctx.received, ctx.group = len(features), sent, received, group
        return _all_to_all(features[rows], sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, grad_out: Tensor) -> tuple[Tensor, None, None, None, None]:
        (rows,) = ctx.saved_tensors
        returned = _all_to_all(grad_out.contiguous(), ctx.received, ctx.sent, ctx.group)
        grad = returned.new_zeros(ctx.num_features, returned.shape[1]).index_add_(0, rows, returned)
        return grad, None, None, None, None


def _all_to_all(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The first sent[0] rows of x go to rank 0, the next sent[1] to rank 1, ...; received rows likewise."""
    if group is None:
        return x
    out = x.new_empty(sum(received), x.shape[1])
    dist.all_to_all_single(out, x, received, sent, group=group)
    return out
