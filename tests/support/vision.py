"""torchvision and timm, for tests that compare with them, whether or not torchvision's compiled operators load here."""

import importlib
import sys
from types import ModuleType

import pytest

_OPERATORS = "torchvision._meta_registrations"


def library(name: str) -> ModuleType:
    """Import a module of torchvision or timm; the test is skipped where it is not installed.

    Transforms and definitions of networks need none of the operators in C++. A wheel that was built for another torch
    does not register them, and torchvision then refuses to be imported at all.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    except RuntimeError:
        for loaded in [module for module in sys.modules if module.partition(".")[0] in ("torchvision", "timm")]:
            del sys.modules[loaded]
        sys.modules[_OPERATORS] = ModuleType(_OPERATORS)
        return importlib.import_module(name)
