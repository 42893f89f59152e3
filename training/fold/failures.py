"""Whatever fails inside a fold becomes a FoldError that says what was being done, and to which node.

Used around every step that runs PyTorch, a user's module or our own reading of a graph.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import FoldError, TrainingError

_LONGEST = 400
_steps: list[str] = []
_ALONE = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Let other threads of the process wait that fold or verify networks: torch.export reads one at a time."""
    with _ALONE:
        yield


def current_step(task: str = "folding") -> str:
    """Return what the innermost `during` of this process is about, `task` outside of all."""
    return _steps[-1] if _steps else task


@contextmanager
def during(step: str) -> Iterator[None]:
    """Raise FoldError, from the cause, for any exception that is none of ours.

    Args:
        step: what is being done, with the node where there is one: "proving the site of 'features.1'".
    """
    _steps.append(step)
    try:
        yield
    except TrainingError:
        raise
    except Exception as err:
        raise FoldError(failure(step, err)) from err
    finally:
        _steps.pop()


def failure(step: str, err: Exception) -> str:
    """Return the sentence for an exception in a step; memory that ran out and errors of CUDA are named as that."""
    text = " ".join(str(err).split())[:_LONGEST]
    kind, machine = type(err).__name__, machine_failure(err)
    return (
        f"{machine} while {step}: {kind}: {text or 'no more is known'}" if machine else f"{step} failed: {kind}: {text}"
    )


def machine_failure(err: Exception) -> str:
    """Return what the machine could not do, such as "out of memory"; "" when the exception is of another kind."""
    kind, text = type(err).__name__, str(err)
    if isinstance(err, MemoryError) or kind == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return "out of memory"
    return "CUDA failed" if kind == "AcceleratorError" or "CUDA error" in text or "CUBLAS_STATUS" in text else ""
