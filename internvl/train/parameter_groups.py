"""Parameter groups: learning rates by part of the model, and by layer of the vision tower.

    part                          learning rate                                       name of the group
    decoder                       learning_rate                                       llm
    projector                     mlp_learning_rate                                   projector
    ViT layer i of L              vision_learning_rate * decay ** (L - i)             vit_layer_i
    ViT embeddings                vision_learning_rate * decay ** (L + 1)             vit_embeddings

With a decay of 1 the tower is one group, `vit`. Rates that are not given equal `learning_rate`; with none of the three
flags all parameters are one group, `all`. Norms and biases have no weight decay, by the names that transformers'
Trainer goes by.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from internvl.model.modeling_internvl_chat import InternVLChatModel

_VIT_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


class ParameterGroup(TypedDict):
    """A group as torch's optimisers take it; the name is for logs."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class LearningRates:
    """The learning rates that the flags ask for."""

    base: float  # `--learning_rate`
    vision: float | None = None  # `--vision_learning_rate`; None: the base
    projector: float | None = None  # `--mlp_learning_rate`; None: the base
    vit_decay: float = 1.0  # `--vit_layer_decay_rate`

    @property
    def are_uniform(self) -> bool:
        """Whether every part trains with the base rate."""
        return self.vision is None and self.projector is None and self.vit_decay == 1.0

    def choose(self, name: str, *, num_vit_layers: int) -> tuple[str, float]:
        """(group, learning rate) of a parameter by its name in the chat model."""
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
    model: InternVLChatModel,
    rates: LearningRates,
    *,
    decayed: Collection[str],
    weight_decay: float,
) -> list[ParameterGroup]:
    """Group the parameters that train for an optimiser; the decoder's groups come first.

    A name has up to two groups, with and without weight decay: `decayed` are the parameters that have it.
    """
    chosen: dict[tuple[str, bool], ParameterGroup] = {}
    num_vit_layers = len(model.vision_model.encoder.layers)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group, rate = rates.choose(name, num_vit_layers=num_vit_layers)
        decays = name in decayed
        entry = ParameterGroup(name=group, params=[], lr=rate, weight_decay=weight_decay if decays else 0.0)
        chosen.setdefault((group, decays), entry)["params"].append(parameter)
    return [chosen[key] for key in sorted(chosen, key=_order)]


def _order(key: tuple[str, bool]) -> tuple[int, int, bool]:
    # The decoder comes before other parts: the first group's rate is logged as the run's learning rate.
    group, decays = key
    part, _, layer = group.partition("_layer_")
    return ("all", "llm", "projector", "vit_embeddings", "vit").index(part), int(layer or 0), not decays


def apply_schedule(scheduler: LRScheduler | None, base_rates: Sequence[float]) -> None:
    """Give the optimiser the learning rates that this run's schedule has for the next step.

    What a checkpoint restores are those of the schedule that it was saved under: another one where the number of steps,
    the learning rate or the kind of schedule has changed since. Schedules of DeepSpeed are left alone.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    scheduler.base_lrs = list(base_rates)
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [base * factor for base, factor in zip(base_rates, factors, strict=True)]
    for group, base, rate in zip(scheduler.optimizer.param_groups, base_rates, scheduler._last_lr, strict=True):
        group.update(lr=rate, initial_lr=base)


def read_learning_rates(scheduler: LRScheduler | None, names: Sequence[str]) -> dict[str, float]:
    """Learning rate of each group (by its name) in the next step; empty where the schedule cannot tell."""
    try:
        rates = [float(rate) for rate in scheduler.get_last_lr()]  # type: ignore[union-attr]
    except (AssertionError, AttributeError):  # DeepSpeed's own schedules before their first step; some schedules always
        return {}
    return dict(zip(names, rates, strict=True)) if len(rates) == len(names) else {}
