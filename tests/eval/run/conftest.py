import pytest


@pytest.fixture(autouse=True)
def no_plots_of_answers(monkeypatch, request):
    """As no_plots of all tests of evaluation."""
    if "plots" not in request.node.name:
        monkeypatch.setattr("eval.run.__main__.write_task_plots", lambda folder, result: None)
