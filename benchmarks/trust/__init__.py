"""The table of promises: each measured on a real service, and again with its guard switched off."""
