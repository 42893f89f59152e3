"""What a fold borrows from the process and gives back: random states, modes, loggers and warnings.

Used wherever a user's model or a tool of PyTorch's runs. Nothing here knows of norms.
"""

import io
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put random states, grad mode, threads, default dtype, log levels and warning filters back, also after errors."""
    dtype, threads, has_grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    with _random_states_kept(), _log_levels_kept(), warnings.catch_warnings():
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(has_grad)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


@contextmanager
def same_random_state() -> Iterator[None]:
    """Start PyTorch's, Python's and NumPy's generators from one state, and put theirs back afterwards."""
    with _random_states_kept() as devices:
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield


@contextmanager
def _random_states_kept() -> Iterator[list[int]]:
    """Put the generators back; gives the numbers of the CUDA devices in use."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield devices
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch.export logs, warns of and prints to sys.stderr; errors still come through as exceptions."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), _log_levels_kept() as loggers:
        warnings.simplefilter("ignore")
        for logger in loggers:
            has_level = logger.level != logging.NOTSET or logger.name == "torch"  # the others ask the one above
            if logger.name.partition(".")[0] == "torch" and has_level:
                logger.setLevel(logging.CRITICAL + 1)
        yield


@contextmanager
def _log_levels_kept() -> Iterator[list[logging.Logger]]:
    """Put the levels of all loggers back; gives the loggers."""
    known = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    levels = {logger: logger.level for logger in [logging.root, logging.getLogger("torch"), *known]}
    try:
        yield list(levels)
    finally:
        for logger, level in levels.items():
            if logger.level != level:  # setting one makes logging look at all of them
                logger.setLevel(level)
