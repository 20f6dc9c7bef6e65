"""The notebook in examples/: its stored outputs, and that it runs."""

from pathlib import Path

import nbformat
import pytest

from examples.run_notebook import NOTEBOOK, execute

ROOT = Path(__file__).parents[1]


def list_outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_outputs_are_stored_and_hold_nothing_of_the_machine_that_made_them():
    text = NOTEBOOK.read_text()
    assert len(text) < 500_000
    assert str(ROOT) not in text
    assert "/home/" not in text
    outputs = list_outputs(nbformat.reads(text, as_version=4))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not any(output.output_type == "error" for output in outputs)


@pytest.mark.slow  # two minutes
def test_the_notebook_runs():
    pictures = [output for output in list_outputs(execute()) if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
