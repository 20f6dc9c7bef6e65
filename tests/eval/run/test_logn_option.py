"""`--logn_scaling` of an evaluation: where results go, and that they never mix with others."""

from pathlib import Path

import pytest

from eval.core.fields import parse_record
from eval.core.result import Settings
from eval.report.labels import label_setting
from eval.run.options import parse_options
from eval.run.planning import choose_folder
from internvl.errors import ConfigError

COMMON = ["--checkpoint", "ckpt", "--tasks", "pope"]


def test_results_have_a_folder_and_settings_of_their_own():
    positions = ["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/4"]
    options = parse_options([*COMMON, *positions, "--rope_scaling", "yarn:4", "--logn_scaling", "4096"])
    assert choose_folder(options) == Path("ckpt/eval_v2pe_fix_0.25_yarn-4_logn-4096")
    told = options.settings.fingerprint()
    assert list(told.items()) == [
        ("rope_pos_id_version", "v2pe_fix"),
        ("rope_pos_id_stride", 0.25),
        ("dtype", None),
        ("rope_scaling", "yarn:4"),
        ("logn_scaling", 4096),
    ]
    assert label_setting(parse_record(Settings, told)) == "V2PE stride 1/4, yarn:4, log-n 4096"


def test_switching_it_off_is_a_setting_and_leaving_the_flag_out_is_none():
    assert parse_options([*COMMON, "--logn-scaling", "0"]).settings.fingerprint()["logn_scaling"] == 0
    assert "logn_scaling" not in parse_options(COMMON).settings.fingerprint()
    assert choose_folder(parse_options(COMMON)) == Path("ckpt/eval_default")


@pytest.mark.parametrize("length", ["1", "-5"])
def test_no_training_length_is_refused(length):
    with pytest.raises(ConfigError, match="--logn_scaling is"):
        parse_options([*COMMON, "--logn_scaling", length])
