import pytest

from eval.report import plots


@pytest.fixture(autouse=True)
def empty_plots(monkeypatch, request):
    """Plots without a picture, except where a test's name asks for them: drawing takes longer than answering."""
    if "plots" not in request.node.name:
        monkeypatch.setattr(plots, "encode_png", lambda figure: b"")
