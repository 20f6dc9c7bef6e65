import pytest


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    """No plots, except where a test's name asks for them: drawing takes longer than answering."""
    if "plots" not in request.node.name:
        for module in ("eval.run.__main__", "eval.score"):
            monkeypatch.setattr(f"{module}.write_task_plots", lambda folder, result: None)
