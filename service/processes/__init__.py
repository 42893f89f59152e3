"""Worker processes: how they start, are watched, replaced and ended."""
