"""What a fold borrows from the process and gives back: random states, loggers and warnings.

Used wherever a user's model or a tool of PyTorch's runs. Nothing here knows of norms.
"""

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_LOGGERS = ("torch", "torch._export", "torch.export", "torch.fx", "torch._dynamo")


@contextmanager
def same_random_state() -> Iterator[None]:
    """Start PyTorch's, Python's and NumPy's generators from one state, and put theirs back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch.export says about hand-written norms and single-size axes; errors still come through."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
