"""Which process holds what: launchers and process groups."""
