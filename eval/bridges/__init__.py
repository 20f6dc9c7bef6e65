"""Model classes for other evaluation suites, so that their tasks run on a V2PE checkpoint with any stride."""
