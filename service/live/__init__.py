"""The models in memory: versions that come, are proved, pointed at, compared and go."""
