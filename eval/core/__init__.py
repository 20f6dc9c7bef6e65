"""Machinery of the evaluation suite: records, predictions, scoring and results. A benchmark adds one `Task`."""
