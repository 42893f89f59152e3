"""What tells a class with guards from the user's class that it was made of; see `guards`.

Used wherever the class of a module is looked at. Nothing here makes such a class.
"""

from torch import nn

BASES = "_foldserve_guards"  # of a class with guards: the user's class, and the kind of guard


def unguarded_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the user's class of a guarded network, any other class as it is."""
    unguarded: type[nn.Module] = vars(cls).get(BASES, (cls,))[0]
    return unguarded
