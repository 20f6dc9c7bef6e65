"""One evaluation run: from options to predictions."""
