"""Who waits before an engine, what becomes a batch, and how long it will take."""
