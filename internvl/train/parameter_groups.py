"""Learning rates by part of the model, and by layer of the vision tower.

    part                          learning rate                                       name of the group
    decoder                       learning_rate                                       llm
    projector                     mlp_learning_rate                                   projector
    ViT layer i of L              vision_learning_rate * decay ** (L - i)             vit_layer_i
    ViT embeddings                vision_learning_rate * decay ** (L + 1)             vit_embeddings

With a decay of 1 the tower is one group, `vit`. Rates that are not given are `learning_rate`; with none of the three
flags everything is one group, `all`. Norms and biases have no
weight decay, by the names that transformers' Trainer goes by.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

_VIT_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class LearningRates:
    """What the flags say.

    Attributes:
        base: `--learning_rate`.
        vision: `--vision_learning_rate`; None: the base.
        projector: `--mlp_learning_rate`; None: the base.
        vit_decay: `--vit_layer_decay_rate`.
    """

    base: float
    vision: float | None = None
    projector: float | None = None
    vit_decay: float = 1.0

    @property
    def are_uniform(self) -> bool:
        """Whether every part has the base rate."""
        return self.vision is None and self.projector is None and self.vit_decay == 1.0

    def choose(self, name: str, *, num_vit_layers: int) -> tuple[str, float]:
        """(group, learning rate) of a parameter.

        Args:
            name: Its name in the chat model.
            num_vit_layers: Layers of the vision tower, L.
        """
        if self.are_uniform:
            return "all", self.base
        if name.startswith("mlp1."):
            return "projector", self.base if self.projector is None else self.projector
        if not name.startswith("vision_model."):
            return "llm", self.base
        rate = self.base if self.vision is None else self.vision
        if self.vit_decay == 1.0:
            return "vit", rate
        layer = _VIT_LAYER.match(name)
        if layer is None:
            return "vit_embeddings", rate * self.vit_decay ** (num_vit_layers + 1)
        index = int(layer[1])
        return f"vit_layer_{index}", rate * self.vit_decay ** (num_vit_layers - index)


def build_parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    rates: LearningRates,
    *,
    num_vit_layers: int,
    decayed: Collection[str],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups for an optimiser, of the parameters that train; the decoder's come first.

    Args:
        parameters: Names and parameters, each parameter once.
        rates: Learning rates.
        num_vit_layers: Layers of the vision tower.
        decayed: Names of the parameters with weight decay.
        weight_decay: Theirs.

    Returns:
        Dicts `name`, `params`, `lr`, `weight_decay`. A part has up to two groups of its name, with and without decay.
    """
    chosen: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        group, rate = rates.choose(name, num_vit_layers=num_vit_layers)
        decays = name in decayed
        entry = {"name": group, "params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        chosen.setdefault((group, decays), entry)["params"].append(parameter)
    return [chosen[key] for key in sorted(chosen, key=_order)]


def _order(key: tuple[str, bool]) -> tuple[int, int, bool]:
    group, decays = key
    part, _, layer = group.partition("_layer_")
    return ("all", "llm", "projector", "vit_embeddings", "vit").index(part), int(layer or 0), not decays
