"""Long questions about one picture among many."""
