"""Differences between settings, and when they are called clear."""

import json

import pytest

from eval.report.compare import compare_settings, main
from eval.report.rows import Row
from internvl.errors import EvalError


def row(task, setting, length, accuracy, stderr=0.02):
    low = None if length == "all" else int(length.rstrip("+"))
    return Row(task, setting, length, accuracy, stderr, 100, low=low)


def write(path, rows):
    path.write_text(json.dumps({"rows": [row.to_json() for row in rows]}))


ROWS = [
    row("text", "default", "100+", 0.9),
    row("image", "default", "100+", 0.9),
    row("text", "default", "800+", 0.4),
    row("image", "default", "800+", 0.6),
    row("text", "default", "all", 0.6),
    row("text", "v2pe_fix stride 1", "100+", 0.9),
    row("image", "v2pe_fix stride 1", "100+", 0.92),
    row("text", "v2pe_fix stride 1", "800+", 0.9),
    row("image", "v2pe_fix stride 1", "800+", 0.7),
]


def test_tasks_count_the_same_and_errors_add_up():
    short, long = compare_settings(ROWS, "default")
    assert (short.length, long.length) == ("100+", "800+")
    assert long.reference.score == pytest.approx(0.5)
    assert long.gain == pytest.approx(0.3)
    assert long.stderr == pytest.approx(0.02)
    assert (short.verdict, long.verdict) == ("no clear difference", "better")


def test_a_loss_is_called_worse():
    [*_, long] = compare_settings(ROWS, "v2pe_fix stride 1")
    assert long.verdict == "worse"


def test_settings_must_share_their_tasks():
    with pytest.raises(EvalError, match=r"length bins, but v2pe_fix stride 1 lacks image at 800\+; eval"):
        compare_settings(ROWS[:-1], "default")
    with pytest.raises(EvalError, match="no setting"):
        compare_settings(ROWS, "linear")


def test_other_length_bins_are_named_with_their_tasks():
    other = [row("text", "s", length, 0.9) for length in ("50+", "100+", "all")]
    with pytest.raises(
        EvalError,
        match=r"default lacks text at 50\+; s lacks image at 100\+; s lacks image at 800\+; s lacks text at 800\+",
    ):
        compare_settings([*ROWS[:5], *other], "default")


def test_many_differences_are_counted():
    rows = [row(f"t{index}", "default", "all", 0.5) for index in range(9)]
    with pytest.raises(EvalError, match="s lacks t5; and 3 more; evaluate both"):
        compare_settings([*rows, row("t0", "s", "all", 0.5)], "default")


def test_the_command_prints_a_line_per_length_and_refuses_other_files(tmp_path, capsys):
    path = tmp_path / "report.json"
    write(path, ROWS)
    assert main([str(path)]) == 0
    assert (
        "800+ tokens: v2pe_fix stride 1 0.800 ± 0.014, default 0.500 ± 0.014, difference +0.300 ± 0.020"
        in capsys.readouterr().out
    )
    path.write_text("[]")
    assert main([str(path)]) == 2
    assert "no report" in capsys.readouterr().err


def test_tasks_without_lengths_are_compared_as_a_whole_and_those_without_answers_left_out(tmp_path, capsys):
    rows = [row(task, setting, "all", value) for task in ("a", "b") for setting, value in (("x", 0.2), ("y", 0.8))]
    rows.append(row("test split", "y", "all", None, None))
    [difference] = compare_settings(rows, "x")
    assert difference.gain == pytest.approx(0.6)
    path = tmp_path / "report.json"
    write(path, rows)
    assert main([str(path), "--baseline", "x"]) == 0
    assert "all questions: y 0.800 ± 0.014, x 0.200 ± 0.014" in capsys.readouterr().out
