"""Search: a plan for a setting, and the nearest settings that fit where it does not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

from internvl.plan.cost import CostPlan, plan_cost
from internvl.plan.memory import GIB, MemoryPlan, gpu_overhead, plan_memory
from internvl.plan.setting import Setting, check_setting
from internvl.plan.sizes import ModelSizes, Parameters, count_parameters

Changes = dict[str, Any]  # flag -> value

MOST_GPUS = 4096
_OFFLOADS = ("offload_optimizer", "offload_activations")


@dataclass(frozen=True)
class Plan:
    """What is predicted for a setting."""

    model: ModelSizes
    setting: Setting
    parameters: Parameters
    memory: MemoryPlan

    @cached_property
    def cost(self) -> CostPlan:
        """Work, messages, time."""
        return plan_cost(self.model, self.setting)

    @property
    def beside(self) -> dict[str, float]:
        """Bytes of a GPU that are not the model's, by item; those of fragments are an assumption."""
        return {**gpu_overhead(self.setting), "fragments (assumed)": self.setting.reserve_gib * GIB}

    @property
    def needed(self) -> float:
        """Bytes of GPU memory at the peak of a step."""
        return self.memory.total + sum(self.beside.values())

    @property
    def loading(self) -> float:
        """Bytes of GPU memory while weights are loaded, before there are fragments."""
        return self.memory.loading + sum(gpu_overhead(self.setting).values())

    @property
    def loads(self) -> bool:
        """Whether a GPU holds all weights for a moment. No flag of training and no number of GPUs changes that."""
        return self.loading <= self.setting.memory_gib * GIB

    @property
    def fits(self) -> bool:
        """Whether a GPU has that much."""
        return self.loads and self.needed <= self.setting.memory_gib * GIB


def make_plan(model: ModelSizes, setting: Setting) -> Plan:
    """Predict memory and cost.

    Raises:
        ConfigError: The setting does not fit the model.
        ParallelError: Heads cannot be dealt out.
    """
    check_setting(model, setting)
    return Plan(model, setting, count_parameters(model, setting.trained), plan_memory(model, setting))


def list_changes(setting: Setting) -> Iterator[Changes]:
    """Every combination of flags that can only save memory, none changed first."""
    sizes = [n for n in range(setting.chunk_num, setting.gpus + 1, setting.chunk_num) if setting.gpus % n == 0]
    batches: list[int | None] = [setting.vit_batch_size]
    batches += [n for n in (64, 16, 4, 1) if n < min(setting.vit_tiles, setting.vit_batch_size or setting.vit_tiles)]
    if setting.mode == "infer":
        prefill = [setting.prefill_chunk_size, *(n for n in (131072, 32768, 8192) if n < setting.first_chunk)]
        choices: dict[str, Sequence[Any]] = {
            "prefill_chunk_size": prefill,
            "vit_batch_size": batches,
            "chunk_num": sizes,
        }
    else:
        switch = [False, True]
        tile = setting.mlp_tile_tokens or setting.local_tokens
        choices = {
            "grad_checkpoint": [True] if setting.grad_checkpoint else switch,
            "keep_attention": sorted({setting.keep_attention, False, not setting.grad_checkpoint}, reverse=True),
            "vit_batch_size": batches,
            "zero_stage": range(setting.zero_stage, 4),
            "chunk_num": sizes,
            "offload_optimizer": [True] if setting.offload_optimizer else switch,
            "offload_activations": [True] if setting.offload_activations else switch,
            "mlp_tile_tokens": [setting.mlp_tile_tokens, *(n for n in (4096,) if n < tile)],
        }
    for values in product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        if setting.mode == "infer" or _is_possible(changes):
            yield {name: value for name, value in changes.items() if value != getattr(setting, name)}


def _is_possible(changes: Changes) -> bool:
    """Whether training takes these flags together (see `Setting`)."""
    if changes["keep_attention"] and not (changes["grad_checkpoint"] and changes["chunk_num"] > 1):
        return False
    if changes["offload_activations"] and not changes["grad_checkpoint"]:
        return False
    return changes["zero_stage"] >= 2 or not changes["offload_optimizer"]


def find_changes(model: ModelSizes, setting: Setting) -> list[Plan]:
    """Plans that fit, the smallest change first: fewest flags, nothing offloaded, most tokens per second.

    Every set of flags appears once, with its best values; sets that contain a smaller one that fits are left out.
    """
    best: dict[frozenset[str], tuple[tuple, Plan]] = {}
    for changes in list_changes(setting) if make_plan(model, setting).loads else ():
        plan = make_plan(model, replace(setting, **changes))
        flags = frozenset(changes)
        if not plan.fits:
            continue
        rank = (len(changes), "offload" in " ".join(flags), -plan.cost.tokens_per_s)
        if flags not in best or rank < best[flags][0]:
            best[flags] = (rank, plan)
    smallest = [entry for flags, entry in best.items() if not any(other < flags for other in best)]
    return [plan for _, plan in sorted(smallest, key=lambda entry: entry[0])]


def find_fastest(model: ModelSizes, setting: Setting) -> Plan | None:
    """The plan that fits with most tokens per second; offloading only where nothing else fits."""
    by_offloads: dict[int, list[Changes]] = {}
    for changes in list_changes(setting) if make_plan(model, setting).loads else ():
        num_offloads = sum(changes.get(name, getattr(setting, name)) for name in _OFFLOADS)
        by_offloads.setdefault(num_offloads, []).append(changes)

    def rank(plan: Plan) -> tuple:
        return (-plan.cost.tokens_per_s, plan.setting.zero_stage, plan.memory.total)

    for _, several in sorted(by_offloads.items()):
        plans = (make_plan(model, replace(setting, **changes)) for changes in several)
        if fastest := min((plan for plan in plans if plan.fits), key=rank, default=None):
            return fastest
    return None


def find_gpus(model: ModelSizes, setting: Setting) -> Plan | None:
    """The plan for the first number of GPUs, doubling, at which something fits; None: not up to 4096."""
    gpus = 2 * setting.gpus
    while gpus <= MOST_GPUS and make_plan(model, setting).loads:
        if plans := find_changes(model, replace(setting, gpus=gpus)):
            return plans[0]
        gpus *= 2
    return None


def describe_changes(before: Setting, after: Setting) -> str:
    """The flags that differ, as they are typed."""
    names = (f.name for f in fields(Setting) if getattr(before, f.name) != getattr(after, f.name))
    return " ".join(f"--{name} {getattr(after, name)}" for name in names)
