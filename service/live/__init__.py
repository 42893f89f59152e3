"""The models in memory: how versions are loaded, checked, pointed at, compared and unloaded."""
