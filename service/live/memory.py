"""Memory that was freed, given back to the system: the C library keeps it for itself otherwise.

The memory of an unloaded version lies in pieces between others; after a few swaps the process would hold several times
what it uses. Knows neither models nor sessions.
"""

import ctypes


def give_back() -> None:
    """Return what is free to the system, where the C library can; takes milliseconds, others may run meanwhile."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
