"""Cards by name, their rates, and what an estimate refuses about them."""

import pytest

from internvl.errors import ConfigError
from internvl.plan.__main__ import main
from internvl.plan.cards import CARDS, find_card, read_card
from internvl.plan.setting import Setting


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("A100-80G", "A100-80G"),
        ("a100_80gb", "A100-80G"),
        ("NVIDIA A100-SXM4-40GB", "A100-40G"),
        ("NVIDIA A100 80GB PCIe", "A100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H20", "H20"),
        ("rtx 4090", "RTX-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
    ],
)
def test_a_card_is_found_as_its_driver_and_its_users_call_it(name, card):
    assert find_card(name).name == read_card(name).name == card


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_is_found_by_its_own_name_and_stays_below_its_peak(card):
    assert find_card(card.name) is card
    for name, most in vars(card.peak).items():
        assert 0.1 * most < getattr(card.realistic, name) < most


@pytest.mark.parametrize(
    ("name", "meant"), [("A100", "A100-40G or A100-80G"), ("rtx4090", "RTX-4090"), ("L40X", "L40")]
)
def test_a_card_that_is_unknown_is_an_error_that_names_a_near_one(name, meant, capsys):
    assert find_card(name) is None
    assert main(["--gpu", name]) == 2
    err = capsys.readouterr().err
    assert f"--gpu '{name}' is unknown, did you mean {meant}" in err
    assert err.count("\n") == 1


def test_a_name_like_no_other_lists_all_cards():
    with pytest.raises(ConfigError, match=r"is unknown; Known: B200, .*, MI300X"):
        read_card("???")


@pytest.mark.parametrize(
    ("name", "value"),
    [("matmul_tflops", 400.0), ("attention_tflops", 313.0), ("memory_gbs", 3350.0), ("gpu_memory_gib", 141.0)],
)
def test_more_than_a_card_has_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"--{name} {value:g}: --gpu A100-80G has"):
        Setting(gpu="A100-80G", **{name: value})


def test_memory_and_rates_are_those_of_the_card_where_none_are_given():
    card, setting = read_card("L40S"), Setting(gpu="L40S", attention_tflops=100.0)
    assert setting.memory_gib == card.memory_gib
    assert setting.rates.attention_tflops == 100
    assert setting.rates.matmul_tflops == card.realistic.matmul_tflops
    assert Setting(gpu="L40S", gpu_memory_gib=40.0).memory_gib == 40
