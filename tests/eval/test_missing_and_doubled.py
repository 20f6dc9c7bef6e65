"""Saved results that lost or doubled answers, hold hostile texts, or are scored again."""

import errno
import json

import pytest

from eval.core.output import write_result
from eval.core.result import read_result, read_settings
from eval.report.rows import make_harmless
from eval.run.__main__ import main as run
from eval.run.answering import _is_expected
from eval.score import main as score
from eval.tasks.tables import render_table
from internvl.errors import DataError
from internvl.infer.question import check_text

TASK = "mm_niah/retrieval-text-test"


def write_command(checkpoint, benchmark_root, out):
    options = f"--checkpoint {checkpoint} --tasks {TASK} --data-root {benchmark_root.root} --out {out} --device cpu"
    return [*options.split(), "--length_bins", "150", "350"]


@pytest.fixture
def finished(checkpoint, benchmark_root, record, tmp_path):
    """The folder of a task with 8 answers, whose scores are cut at 150 and 350 tokens."""
    benchmark_root.write("retrieval-text", [record(index) for index in range(8)])
    assert run(write_command(checkpoint, benchmark_root, tmp_path / "out")) == 0
    return tmp_path / "out" / TASK


def edit_lines(folder, change):
    path = folder / "predictions.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def read_scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_a_missing_answer_is_said(finished, capsys):
    edit_lines(finished, lambda lines: lines[:-1])
    before = (finished / "scores.json").read_bytes()
    assert score([str(finished)]) == 2
    assert "1 of 8 answers are missing (of the samples '7'); start" in capsys.readouterr().err
    assert (finished / "scores.json").read_bytes() == before
    assert score([str(finished), "--allow_missing"]) == 0
    assert read_result(finished / "scores.json").scores["official"].count == 7


def test_the_first_of_many_missing_answers_are_named(finished, capsys):
    edit_lines(finished, lambda lines: lines[:1])
    assert score([str(finished)]) == 2
    assert "7 of 8 answers are missing (of the samples '1', '2', '3', '4', '5', and 2 more)" in capsys.readouterr().err


def test_equal_lines_count_once_whatever_time_they_took(finished):
    before = read_scores(finished)
    edit_lines(finished, lambda lines: [*lines, json.dumps({**json.loads(lines[0]), "seconds": 99.0}) + "\n"])
    assert score([str(finished)]) == 0
    assert read_scores(finished) == before


def test_different_answers_of_a_sample_are_an_error_with_both_lines(finished, capsys):
    edit_lines(finished, lambda lines: [*lines, json.dumps({**json.loads(lines[0]), "response": "other"}) + "\n"])
    assert score([str(finished)]) == 2
    assert "predictions.jsonl lines 1 and 9 hold different answers" in capsys.readouterr().err


def test_lengths_of_the_run_are_used_again(finished):
    before = read_scores(finished)
    assert read_settings(finished).length_bins == [150, 350]
    assert score([str(finished)]) == 0
    assert read_scores(finished) == before


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_no_cell_is_a_formula(text):
    assert make_harmless(text) == f"'{text}"


@pytest.mark.parametrize("cell", [-1.5, 0, None, "a=1", ""])
def test_other_cells_stay(cell):
    assert make_harmless(cell) == cell


def test_a_file_for_a_server_keeps_its_texts():
    assert render_table([["index", "A"], ["1", "=1+1"]]) == "index\tA\n1\t=1+1\n"


def test_a_text_with_half_a_character_fails_its_question_only(checkpoint, benchmark_root, record, tmp_path):
    records = [record(index) for index in range(4)]
    records[1]["question"] = "What is \ud83d?"
    records[2]["answer"] = "blue \ud83d"
    benchmark_root.write("retrieval-text", records)
    assert run([*write_command(checkpoint, benchmark_root, tmp_path / "out"), "--max_failed", "1"]) == 0
    lines = (tmp_path / "out" / TASK / "predictions.jsonl").read_text().splitlines()
    failures = [json.loads(line)["failure"] for line in lines]
    assert [failure is not None for failure in failures] == [False, True, False, False]
    assert "half a character, U+D83D" in failures[1]


def test_half_characters_are_refused_and_whole_ones_taken():
    check_text("\U0001f600 猫")
    with pytest.raises(DataError, match=r"U\+DC00"):
        check_text("a\udc00")


def test_a_report_shows_a_substitute_for_half_a_character(tmp_path):
    write_result(tmp_path / "page.md", "a\ud83db")
    assert (tmp_path / "page.md").read_text() == "a?b"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE])
def test_a_fault_of_the_machine_is_no_answer(number):
    assert not _is_expected(OSError(number, "fault"))
    assert _is_expected(FileNotFoundError(errno.ENOENT, "picture"))
