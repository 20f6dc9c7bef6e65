"""A benchmark is added as docs/decisions/adding_a_benchmark.md says: with its file and its line, and nothing else."""

import ast
import re
from pathlib import Path

import pytest

import eval.tasks
from eval.check_data import check_task
from eval.tasks.registry import GROUPS, find_task, list_task_names, select_tasks
from internvl.errors import DataError

PAGE = Path(__file__).parents[3] / "docs/decisions/adding_a_benchmark.md"
MODULE, LINE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def colours(tmp_path, monkeypatch, data_root):
    """The module and the line of the page, and two questions."""
    (tmp_path / "colours.py").write_text(MODULE)
    monkeypatch.setattr(eval.tasks, "__path__", [*eval.tasks.__path__, str(tmp_path)])
    for group, modules in ast.literal_eval("{" + LINE + "}").items():
        monkeypatch.setitem(GROUPS, group, modules)
    record = {"image": "data/colours/1.png", "question": "Which colour?", "options": ["red", "blue"], "answer": "blue"}
    data_root.write_lines("colours/test.jsonl", [record, {**record, "answer": "red"}])
    data_root.write_image("colours/1.png")
    return data_root


def test_the_documented_file_is_short():
    assert 20 <= len(MODULE.splitlines()) <= 60
    assert len(LINE.splitlines()) == 1


def test_the_documented_benchmark_runs_to_a_score(colours):
    assert "colours/test" in list_task_names()
    assert [task.name for task in select_tasks("colours")] == ["colours/test"]
    assert check_task(find_task("colours/test"), colours.root).is_complete
    first, _ = colours.read("colours/test")
    assert first.prompt == (
        "<image>\nWhich colour?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    results = colours.evaluate("colours/test", ["B", "The answer is B."])["results"]
    assert (results["official"]["score"], results["official"]["count"], results["official"]["chance"]) == (0.5, 2, 0.5)


def test_its_records_are_checked_by_their_annotations(colours):
    record = {"image": "data/colours/1.png", "question": "Which colour?", "options": ["red", 3], "answer": "red"}
    colours.write_lines("colours/test.jsonl", [record])
    with pytest.raises(DataError, match=r"test\.jsonl, row 0.*'options\[1\]' is a int, expected str"):
        colours.read("colours/test")
