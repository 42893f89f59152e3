"""Examples a second against the textbook loop, and everything that needs a GPU."""
