"""Files as they lie: pictures, archives, URLs, indexes, annotation files."""
