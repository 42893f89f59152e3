"""Version folders on disk: which there are, what is in them, and what may not be."""
