"""One rank's view of a row that a group shares: what it holds of it, and how attention reaches the rest.

    batch (the whole row on every rank of the group, tiles: own ones)
      model.forward(..., row_sharing=SharedRow(grid))
        positions, targets, weights of the whole row  --shard-->  own tokens
        own tiles --ViT--> features --exchange_features-->        features of own visual tokens
        every decoder layer: attend("ring", ...)                  keys and values of the others, as far as needed

`SharedRow` is what the model asks for (internvl/model/row_sharing.py); `register_shared_attention` puts attention
over the grid behind the seam (internvl/model/attention.py), for our decoder and for those of transformers.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from internvl.model.attention import register_attention
from internvl.parallel.grid import Grid
from internvl.parallel.ulysses import hybrid_attention
from internvl.parallel.vision import exchange_features, locate_wanted, split_tiles

SHARED_ATTENTION = "ring"


@dataclass(frozen=True)
class SharedRow:
    """Cuts rows for one rank of a grid and brings features to where they are used.

    Attributes:
        grid: The process grid; one rank on its own holds whole rows.
    """

    grid: Grid

    def shard(self, x: Tensor, *, pad_value: float = 0) -> Tensor:
        """This rank's tokens: (1, length, ...) -> (1, local length, ...); the row is padded with `pad_value`."""
        return self.grid.shard(x, dim=1, pad_value=pad_value)

    def exchange_features(self, features: Tensor, visual: Tensor) -> Tensor:
        """Features of the visual tokens in this rank's shard, in order. Collective over the group.

        Args:
            features: (own tiles, T, D), of the tiles that `split_tiles` gives to this rank.
            visual: (1, length) bool, visual tokens of the whole row.

        Returns:
            (own visual tokens, D).

        Raises:
            ValueError: Another number of visual tokens than of features.
        """
        num_visual = int(visual.sum())
        num_tiles = -(-num_visual // features.shape[1])
        return exchange_features(
            features,
            owner_ranges=split_tiles(num_tiles, self.grid.group_size),
            wanted=locate_wanted(visual, shape=self.grid.shape),
            group=self.grid.group,
        )

    def agree_on(self, flags: Tensor) -> Tensor:
        """The largest of every flag over the ranks that share the row. Collective over the group.

        Args:
            flags: Integers, of one shape on all ranks, on the device of the backend.
        """
        agreed = flags.clone()
        if self.grid.group is not None:
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.grid.group)
        return agreed


def register_shared_attention(grid: Grid, *, kernel: str | None = None, name: str = SHARED_ATTENTION) -> None:
    """Make attention over the grid selectable as `attn_implementation=name`.

    Args:
        grid: Ranks that share rows.
        kernel: What computes a block, a name of `internvl.parallel.kernels`; None: torch's own for the device.
        name: A grid that is registered later under the same name takes its place.
    """

    def attend_over_grid(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        cu_seqlens: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        if query.shape[0] != 1 or query.shape[2] != key.shape[2] or attention_mask is not None or cu_seqlens is None:
            raise ValueError(
                f"attention {name!r} takes one row with cu_seqlens, without padding or cache, got a batch of "
                f"{query.shape[0]} with {query.shape[2]} queries and {key.shape[2]} keys"
            )
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        out = hybrid_attention(
            query, key, value, cu_seqlens=cu_seqlens, grid=grid, softmax_scale=scaling, kernel=kernel
        )
        return out.transpose(0, 1).unsqueeze(0)

    register_attention(name, attend_over_grid)
