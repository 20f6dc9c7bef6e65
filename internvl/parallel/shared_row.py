"""Shared row: one rank's view of a row that a group of ranks shares, and attention over the whole of it.

    batch: the whole row on every rank of the group, but only this rank's tiles
      model.forward(..., row_sharing=SharedRow(grid))
        borders of its documents                          --of_row--> who holds which tokens (deal.py)
        positions of the whole row                    --shard-->  own tokens
        own tiles --ViT--> features --exchange_features-->        features of own visual tokens
        every decoder layer: attend("ring", ...)                  keys and values of the others, as far as needed
        hidden states of own tokens --share_predictions-->        those of an equal share of the predictions

`SharedRow` implements what the model asks for (internvl/model/row_sharing.py); `register_shared_attention` makes
attention over the grid selectable by name (internvl/model/attention.py), in our decoder and in those of transformers.
"""

from dataclasses import dataclass, replace

import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from internvl.model.attention import Padding, register_attention
from internvl.model.constants import IGNORE_INDEX
from internvl.parallel.grid import Grid
from internvl.parallel.predictions import send_predictions, take_share
from internvl.parallel.ulysses import hybrid_attention
from internvl.parallel.vision import exchange_features, locate_wanted, split_tiles

SHARED_ATTENTION = "ring"


@dataclass(frozen=True)
class SharedRow:
    """Cuts rows for one rank of a grid and brings features to where they are used."""

    grid: Grid  # the process grid; a single rank holds whole rows
    borders: tuple[int, ...] | None = None  # of the row's documents, from 0; None: one document

    def of_row(self, cu_seqlens: Int[Tensor, " borders"] | None) -> "SharedRow":
        """The view of a row with these documents. Borders on a GPU are copied, and waited for."""
        return replace(self, borders=None if cu_seqlens is None else tuple(cu_seqlens.reshape(-1).tolist()))

    def shard(self, x: Shaped[Tensor, "1 length *dims"], *, pad_value: float = 0) -> Shaped[Tensor, "1 local *dims"]:
        """This rank's tokens of a whole row, which is padded with `pad_value`."""
        return self.grid.shard(x, dim=1, pad_value=pad_value, borders=self.borders)

    def exchange_features(
        self, features: Float[Tensor, "own_tiles tokens_per_tile dim"], visual: Bool[Tensor, "1 length"]
    ) -> Float[Tensor, "own_visual_tokens dim"]:
        """Features of the visual tokens in this rank's shard, in order. Collective over the group.

        `features` are those of the tiles that `split_tiles` gives to this rank; `visual` is True at the visual tokens
        of the whole row. Raises ValueError if their numbers differ.
        """
        num_visual = int(visual.sum())
        num_tiles = -(-num_visual // features.shape[1])
        return exchange_features(
            features,
            owner_ranges=split_tiles(num_tiles, self.grid.group_size),
            wanted=locate_wanted(visual[0], shape=self.grid.shape, borders=self.borders),
            group=self.grid.group,
        )

    def take_predictions(
        self, x: Shaped[Tensor, "1 length"], predicts: Bool[Tensor, "1 length"], *, pad_value: float = 0
    ) -> Shaped[Tensor, "1 share"]:
        """Entries of a whole row at this rank's share of the predictions, padded."""
        rank, size = self.grid.group_rank, self.grid.group_size
        return take_share(x[0], predicts[0], rank=rank, size=size, pad_value=pad_value).unsqueeze(0)

    def share_predictions(
        self,
        states: Float[Tensor, "1 local dim"],
        targets: Int64[Tensor, "1 length"],
        weights: Float[Tensor, "1 length"],
    ) -> tuple[Float[Tensor, "1 share dim"], Int64[Tensor, "1 share"], Float[Tensor, "1 share"]]:
        """What of the loss this rank computes: as many predictions as every other one. Collective over the group.

        `states` are those of its own tokens; `targets` and `weights` (0 where nothing is predicted) of the whole row.
        """
        predicts = weights != 0
        own = self.shard(predicts)[0].nonzero().squeeze(1)
        held = locate_wanted(predicts[0], shape=self.grid.shape, borders=self.borders)
        share = send_predictions(states[0], own, held=held, group=self.grid.group).unsqueeze(0)
        own_targets = self.take_predictions(targets, predicts, pad_value=IGNORE_INDEX)
        return share, own_targets, self.take_predictions(weights, predicts)

    def agree_on(self, flags: Int[Tensor, "*flags"]) -> Int[Tensor, "*flags"]:
        """The maximum of every flag over the ranks that share the row. Collective over the group.

        `flags` have one shape on all ranks and are on the device of the backend.
        """
        agreed = flags.clone()
        if self.grid.group is not None:
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.grid.group)
        return agreed


def register_shared_attention(grid: Grid, *, kernel: str | None = None, name: str = SHARED_ATTENTION) -> None:
    """Make attention over the grid selectable as `attn_implementation=name`.

    `kernel` is a name of `kernels.KERNELS`; None: torch's flash kernel of the device. A grid registered later under the
    same name replaces this one.
    """

    def attend_over_grid(
        query: Float[Tensor, "batch heads queries head_dim"],
        key: Float[Tensor, "batch kv_heads keys head_dim"],
        value: Float[Tensor, "batch kv_heads keys head_dim"],
        *,
        scaling: float,
        cu_seqlens: Int[Tensor, " borders"] | None,
        attention_mask: Padding | None,
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        if query.shape[0] != 1 or query.shape[2] != key.shape[2] or attention_mask is not None or cu_seqlens is None:
            raise ValueError(
                f"attention {name!r} takes one row with cu_seqlens, without padding or cache, got a batch of "
                f"{query.shape[0]} with {query.shape[2]} queries and {key.shape[2]} keys"
            )
        q, k, v = (rearrange(x, "1 heads tokens head_dim -> tokens heads head_dim") for x in (query, key, value))
        out = hybrid_attention(q, k, v, cu_seqlens=cu_seqlens, grid=grid, softmax_scale=scaling, kernel=kernel)
        return rearrange(out, "tokens heads head_dim -> 1 heads tokens head_dim")

    register_attention(name, attend_over_grid)
