"""Execute the notebook of this folder and store its outputs: python examples/run_notebook.py."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("v2pe_in_ten_minutes.ipynb")


def execute(path: Path = NOTEBOOK, *, timeout_s: int = 900) -> nbformat.NotebookNode:
    """The notebook with new outputs; what cells write to standard error (progress) is left out.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails, or takes longer than `timeout_s` seconds.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=timeout_s, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    nbformat.write(execute(), NOTEBOOK)
