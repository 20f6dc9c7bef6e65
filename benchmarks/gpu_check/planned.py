"""What was measured beside what internvl/plan predicts for it."""

import torch

from benchmarks.gpu_check.chat_model import Row as ModelRow
from benchmarks.gpu_check.part import Cell, Job, Measured, Row
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.plan.cards import Card, find_card
from internvl.plan.search import Plan, make_plan
from internvl.plan.setting import Setting
from internvl.plan.sizes import extract_sizes

GIB = 2**30


def find_own_card(device: torch.device) -> Card | None:
    """What the planner knows about this card; None on the CPU, or if it has no line in internvl/plan/cards.py."""
    return find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def plan_row(config: InternVLChatConfig, row: ModelRow, card: Card | None, **flags: Cell) -> Plan:
    """The plan of a row on one card, without ZeRO."""
    setting = Setting(
        max_packed_tokens=row.num_tokens,
        tiles=len(row.pixel_values),
        documents=len(row.cu_seqlens) - 1,
        supervised=row.supervised,
        gpus=1,
        zero_stage=0,
        **({"gpu": card.name} if card else {}),
        **flags,
    )
    return make_plan(extract_sizes("measured", config), setting)


def describe(measured: Measured, plan: Plan, job: Job) -> Row:
    """Seconds, tokens per second, MFU and peak memory, each with its prediction where there is one."""
    card = find_own_card(job.device)
    flops = plan.cost.model_flops_step / measured.seconds
    return {
        "tokens/s": plan.setting.max_packed_tokens / measured.seconds,
        "MFU %": 100 * flops / (card.peak.matmul_tflops * 1e12) if card else None,
        "seconds": measured.seconds,
        "planned seconds": plan.cost.step_s if card else None,
        "peak GiB": None if measured.peak_bytes is None else measured.peak_bytes / GIB,
        "planned GiB": plan.memory.total / GIB,
    }
