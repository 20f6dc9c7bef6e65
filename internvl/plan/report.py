"""Plans as text, as JSON, and as the table of docs/long_context.md."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product

from internvl.markdown import format_table
from internvl.plan.cards import CARDS
from internvl.plan.memory import GIB
from internvl.plan.search import MOST_GPUS, Plan, describe_changes, find_fastest
from internvl.plan.setting import Setting
from internvl.plan.sizes import read_sizes
from internvl.plan.traffic import FUSED_BYTES, UNFUSED_BYTES

_TABLE_MODELS = ("InternVL2-2B", "InternVL2-8B")
_TABLE_TOKENS = (32768, 131072, 262144, 1048576)
_TABLE_GPUS = (8, 32)
_COLUMNS = (
    *(
        "`chunk_num`",
        "ZeRO",
        "recompute",
        "`vit_batch_size`",
        "`mlp_tile_tokens`",
        "offload",
        "GiB per GPU",
        "TFLOP per GPU",
    ),
    *("GB sent", "s per step", "tokens/s"),
)


def _align(rows: Sequence[tuple[str, str]]) -> list[str]:
    left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"  {name:<{left}}  {value:>{right}}" for name, value in rows]


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def _tflop(flops: float) -> str:
    return f"{flops / 1e12:,.1f} TFLOP"


def _describe_rates(setting: Setting) -> str:
    rates = setting.rates
    return (
        f"{rates.matmul_tflops:,.0f} TFLOP/s of products, {rates.attention_tflops:,.0f} of attention, "
        f"{rates.memory_gbs:,.0f} GB/s of memory and {setting.bandwidth_gbs:g} GB/s between GPUs"
    )


def _describe_fusion(setting: Setting) -> str:
    forward, backward = FUSED_BYTES if setting.fused else UNFUSED_BYTES
    text = f"norms and rotary embeddings take {forward} bytes per number forward and {backward} backward"
    return f"{text} (fused)" if setting.fused else f"{text} (not fused)"


def format_plan(plan: Plan) -> str:
    """The plan as aligned text."""
    setting, memory, cost = plan.setting, plan.memory, plan.cost
    lines = [
        f"{plan.model.name}, {setting.mode}: rows of {setting.max_packed_tokens:,} tokens and {setting.tiles:,} tiles "
        f"on {setting.gpus} GPUs, computed, not measured",
        f"parameters {plan.parameters.total:,}"
        + (f", trained {plan.parameters.trained:,}" if setting.mode == "train" else ""),
        f"a rank holds {setting.local_tokens:,} tokens and encodes {setting.local_tiles:,} tiles",
        "",
        f"memory of a rank at its peak ({memory.phase})",
        *_align(
            [(name, _gib(size)) for name, size in (memory.items | plan.beside).items()]
            + [("sum", _gib(plan.needed)), (f"memory of {setting.card.name}", _gib(setting.memory_gib * GIB))]
        ),
        "",
        f"peak while loading: {_gib(plan.loading)} per GPU (a rank holds all weights before ZeRO-3 cuts them), "
        f"{_gib(memory.loading)} of main memory per rank",
    ]
    if memory.host:
        lines += ["", f"main memory per rank for what is offloaded: {_gib(memory.host)}"]
    step = "step" if setting.mode == "train" else "prefill"
    lines += [
        "",
        f"work of a {step}",
        *_align(
            [(name, f"{_tflop(flops)} per row") for name, flops in cost.flops_items.items()]
            + [("per GPU", _tflop(cost.flops_rank)), ("all GPUs", _tflop(cost.flops_step))]
            + [("without recomputation", _tflop(cost.model_flops_step))]
        ),
        "",
        f"bytes that a rank sends in a {step}",
        *_align(
            [(name, f"{sent / 1e9:,.2f} GB") for name, sent in cost.sent.items()]
            + [("sum", f"{sum(cost.sent.values()) / 1e9:,.2f} GB")]
        ),
        "",
        f"time of a {step} at {_describe_rates(setting)} (assumed)",
        *_align(
            [(name, f"{seconds:,.2f} s") for name, seconds in cost.seconds.items()]
            + [
                ("compute", f"{cost.compute_s:,.2f} s"),
                ("messages", f"{cost.communication_s:,.2f} s"),
                ("to main memory and back", f"{cost.offloading_s:,.2f} s"),
                ("all overlaps", f"{max(cost.compute_s, cost.communication_s, cost.offloading_s):,.2f} s"),
                ("nothing overlaps", f"{cost.step_s:,.2f} s"),
                ("MFU", f"{cost.mfu:.1%}"),
            ]
        ),
        _describe_fusion(setting),
        "",
        "fits" if plan.fits else "DOES NOT FIT" if plan.loads else "DOES NOT FIT while loading",
    ]
    return "\n".join(lines)


def format_advice(plan: Plan, plans: Sequence[Plan], larger: Plan | None) -> str:
    """What to change, smallest change first."""
    if plans:
        lines = ["what to change (smallest change first):"]
        for other in plans[:3]:
            lines.append(
                f"  {describe_changes(plan.setting, other.setting)}: {_gib(other.needed)}, "
                f"{other.cost.tokens_per_s:,.0f} tokens/s"
            )
        return "\n".join(lines)
    if not plan.loads:
        names = [card.name for card in CARDS if plan.loading <= card.memory_gib * GIB]
        return (
            f"all weights must fit on every GPU while they are loaded; cards that hold them: {', '.join(names) or '-'}"
        )
    if larger is None:
        return f"no combination of flags fits, up to {MOST_GPUS} GPUs; shorten --max_packed_tokens"
    changes = describe_changes(plan.setting, larger.setting)
    return f"no combination of flags fits {plan.setting.gpus} GPUs; this does: {changes}: {_gib(larger.needed)}"


def describe_plan(plan: Plan, plans: Sequence[Plan] = (), larger: Plan | None = None) -> dict[str, object]:
    """The plan as JSON knows it; sizes in bytes, times in seconds."""
    record = {
        "model": plan.model.name,
        "measured": False,
        "setting": asdict(plan.setting),
        "parameters": {"total": plan.parameters.total, "trained": plan.parameters.trained},
        "memory": {
            **asdict(plan.memory),
            "total": plan.memory.total,
            "with_reserve": plan.needed,
            "while_loading": plan.loading,
        },
        "cost": {
            **asdict(plan.cost),
            "compute_s": plan.cost.compute_s,
            "step_s": plan.cost.step_s,
            "tokens_per_s": plan.cost.tokens_per_s,
            "mfu": plan.cost.mfu,
        },
        "fits": plan.fits,
    }
    if not plan.fits:
        found = list(plans[:3]) or ([larger] if larger else [])
        record["changes"] = [
            {"flags": describe_changes(plan.setting, p.setting), "with_reserve": p.needed} for p in found
        ]
    return record


def format_overview(setting: Setting) -> str:
    """Markdown: the fastest setting that fits, for lengths, models and numbers of GPUs of docs/long_context.md."""
    intro = (
        f"Computed by `python -m internvl.plan --table`, not measured. {setting.card.name} with {setting.memory_gib:g} "
        f"GiB, {setting.reserve_gib:g} of them for fragments; {_describe_rates(setting)} assumed; rows of one "
        f"document, half of its tokens visual (a tile per 512 tokens), {setting.supervised:.0%} of the tokens "
        "supervised, all weights trained in bfloat16. Of all settings that fit, the one with most tokens per second if "
        "messages and computing do not overlap (`--fastest`); offloading only where nothing else fits."
    )
    rows = [["model", "tokens", "GPUs", *_COLUMNS]]
    for name, tokens, gpus in product(_TABLE_MODELS, _TABLE_TOKENS, _TABLE_GPUS):
        asked = replace(setting, max_packed_tokens=tokens, tiles=tokens // 512, gpus=gpus, chunk_num=1, zero_stage=1)
        plan = find_fastest(read_sizes(name), asked)
        rows.append([name, f"{tokens // 1024}k", str(gpus), *_format_cells(plan)])
    return f"{intro}\n\n{format_table(rows, is_padded=False)}"


def _format_cells(plan: Plan | None) -> list[str]:
    if plan is None:
        return ["does not fit", *["-"] * (len(_COLUMNS) - 1)]
    setting, cost = plan.setting, plan.cost
    offloaded = [
        n.removeprefix("offload_") for n in ("offload_optimizer", "offload_activations") if getattr(setting, n)
    ]
    return [
        str(setting.chunk_num),
        str(setting.zero_stage),
        "no" if not setting.grad_checkpoint else "all but attention" if setting.keep_attention else "yes",
        str(setting.vit_batch_size or "all"),
        str(setting.mlp_tile_tokens or "all"),
        ", ".join(offloaded) or "-",
        f"{plan.needed / GIB:.0f}",
        f"{cost.flops_rank / 1e12:,.0f}",
        f"{sum(cost.sent.values()) / 1e9:,.0f}",
        f"{cost.step_s:,.1f}",
        f"{cost.tokens_per_s:,.0f}",
    ]
