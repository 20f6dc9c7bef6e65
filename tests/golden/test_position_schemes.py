"""Position schemes against public implementations: where tokens stand, and which axis turns which frequency."""

import torch
from test_golden import each, load

from internvl.model.configuration_internvl_chat import InternLM2Config
from internvl.model.positions import ROPE_POS_ID_VERSIONS, SCHEMES, has_axes
from internvl.model.positions_scheme import ImageGrid, read_row
from internvl.model.rotary import Sequences, build_rotary_tables

BEGIN, VISUAL, END = 7, 9, 8


def write_row(case):
    """Token ids, and for every token the place that the published order gives it."""
    ids, order = [], []
    for num_text, (rows, columns, has_thumbnail) in zip(case["texts"], case["images"], strict=True):
        ids += [1] * (num_text - 1) + [BEGIN]
        order += range(len(order), len(ids))
        side = int(case["tokens_per_tile"] ** 0.5)
        raster = torch.arange(rows * columns * side**2).view(rows, side, columns, side)
        order += (len(order) + raster.transpose(1, 2).flatten()).tolist()
        order += range(len(order), len(order) + has_thumbnail * side**2)
        ids += [VISUAL] * (len(order) - len(ids)) + [END]
        order.append(len(order))
    ids += [1] * case["after"]
    return torch.tensor([ids]), torch.tensor([*order, *range(len(order), len(ids))])


@each("position_schemes")
def test_position_scheme(case):
    ids, order = write_row(case)
    scheme = SCHEMES[case["version"]]
    row = read_row(
        ids,
        image_token_id=VISUAL,
        num_image_token=case["tokens_per_tile"],
        grids=torch.tensor([ImageGrid(*numbers) for numbers in case["images"]]),
    )
    positions = row.finish(scheme.place(row))
    expected = torch.tensor(case["positions"], dtype=torch.float64)
    assert torch.equal(positions[:, 0], expected[:, order])
    assert scheme.next_text(expected[:, -1]) == expected[0, -1] + 1
    if "cos" in case:
        config = InternLM2Config(hidden_size=1024, num_attention_heads=8, rope_theta=case["rope_theta"])
        shown = expected[:, case["tokens"]].unsqueeze(1)
        cos, sin = build_rotary_tables(config, shown, Sequences(), case["version"])
        torch.testing.assert_close(cos.reshape(-1, 64), torch.tensor(case["cos"]), rtol=0, atol=1e-5)
        torch.testing.assert_close(sin.reshape(-1, 64), torch.tensor(case["sin"]), rtol=0, atol=1e-5)


def test_every_version_of_several_axes_has_cases():
    covered = {case["version"] for case in load("position_schemes")["cases"]}
    assert covered == {version for version in ROPE_POS_ID_VERSIONS if has_axes(version)}
