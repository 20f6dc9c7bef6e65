"""Cards: memory, peak and realistic rates of GPUs by name. The one table for the planner and for training's MFU.

Peaks (dense bfloat16) and bandwidths are those of the vendors' data sheets. Memory is what CUDA reports ("total
capacity" in torch's messages), a little less than the name says. What kernels reach is a share of the peak:

    attention   FlashAttention-2's kernels, which torch has too, forward and backward. A100: 50-73 % (Dao,
                arXiv:2307.08691, section 4.1). H100: 335 TFLOP/s there, 35 % (Shah et al., arXiv:2407.08608, abstract).
    matmul      products of a model of 2B to 8B parameters, without kernels between them
    traffic     80 % of the bandwidth, for kernels that only read and write

Shares of other cards than A100 and H100 are assumptions by their architecture. None was measured here.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from internvl.errors import ConfigError


@dataclass(frozen=True)
class Rates:
    """What a GPU sustains."""

    matmul_tflops: float  # 10^12 FLOPs per second of matrix products
    attention_tflops: float  # 10^12 FLOPs per second of attention kernels
    memory_gbs: float  # 10^9 bytes per second that kernels read and write


@dataclass(frozen=True)
class Card:
    """A GPU. Its `peak` is that of the data sheet."""

    name: str
    memory_gib: float
    peak: Rates  # products and attention run on the same units
    realistic: Rates


_TRAFFIC_SHARE = 0.8


def _list_cards(attention: float, matmul: float, rows: Sequence[tuple[str, float, float, float]]) -> list[Card]:
    """Cards of one architecture from (name, GiB, dense bfloat16 TFLOP/s, GB/s)."""
    return [
        Card(
            name,
            memory_gib,
            Rates(tflops, tflops, memory_gbs),
            Rates(matmul * tflops, attention * tflops, _TRAFFIC_SHARE * memory_gbs),
        )
        for name, memory_gib, tflops, memory_gbs in rows
    ]


# Where the words of several names are among those of a device, the first one wins.
_BLACKWELL = _list_cards(0.15, 0.5, [("B200", 178.3, 2250.0, 7672.0)])
_HOPPER = _list_cards(
    0.30,
    0.55,
    [
        ("H200-NVL", 139.8, 835.0, 4800.0),
        ("H200", 139.8, 989.4, 4800.0),
        ("H100-PCIe", 79.1, 756.0, 2000.0),
        ("H100-NVL", 93.1, 835.0, 3900.0),
        ("H100", 79.1, 989.4, 3350.0),
        ("H800-PCIe", 79.1, 756.0, 2000.0),
        ("H800", 79.1, 989.4, 3350.0),
    ],
)
# An H200 with a seventh of its arithmetic: nothing else limits it.
_HOPPER_SMALL = _list_cards(0.6, 0.8, [("H20", 95.0, 148.0, 4000.0)])
_AMPERE = _list_cards(
    0.55,
    0.7,
    [
        ("A100-40G", 39.5, 312.0, 1555.0),
        ("A100-80G", 79.1, 312.0, 2039.0),
        ("A800", 79.1, 312.0, 2039.0),
        ("A30", 23.5, 165.0, 933.0),
    ],
)
_AMPERE_GRAPHICS = _list_cards(
    0.5,
    0.65,
    [
        ("A40", 44.4, 149.7, 696.0),
        ("A10G", 22.0, 70.0, 600.0),
        ("A10", 22.0, 125.0, 600.0),
        ("RTX-A6000", 47.5, 154.8, 768.0),
        ("RTX-3090", 23.7, 71.0, 936.0),
    ],
)
_ADA = _list_cards(
    0.5,
    0.65,
    [
        ("L40S", 44.4, 362.0, 864.0),
        ("L40", 44.4, 181.0, 864.0),
        ("L4", 22.0, 121.0, 300.0),
        ("RTX-6000-Ada", 47.4, 364.2, 960.0),
        ("RTX-4090", 23.6, 165.2, 1008.0),
    ],
)
_CDNA = _list_cards(0.25, 0.5, [("MI300X", 191.9, 1307.4, 5300.0)])
CARDS = (*_BLACKWELL, *_HOPPER, *_HOPPER_SMALL, *_AMPERE, *_AMPERE_GRAPHICS, *_ADA, *_CDNA)


def _split_words(name: str) -> set[str]:
    """`NVIDIA A100-SXM4-80GB` -> NVIDIA A100 SXM4 80G."""
    return {re.sub(r"(?<=\d)GB$", "G", word) for word in re.split(r"[\s_-]+", name.upper())}


@cache
def find_card(name: str) -> Card | None:
    """The card that a device's driver, or a user, calls so; None when it is not in the table."""
    words = _split_words(name)
    return next((card for card in CARDS if _split_words(card.name) <= words), None)


def read_card(name: str) -> Card:
    """The card of `--gpu NAME`.

    Raises:
        ConfigError: There is none of this name.
    """
    card = find_card(name)
    if card is None:
        names = [card.name for card in CARDS]
        by_letters = {name.upper(): name for name in names}
        near = [n for n in names if name and n.upper().startswith(name.upper())] or [
            by_letters[match] for match in difflib.get_close_matches(name.upper(), by_letters, n=2)
        ]
        meant = f", did you mean {' or '.join(near)}?" if near else ";"
        raise ConfigError(f"--gpu {name!r} is unknown{meant} Known: {', '.join(names)}")
    return card
