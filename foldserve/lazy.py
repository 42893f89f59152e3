"""Where each public name lives, and how it is loaded on first use (PEP 562)."""

import importlib
from typing import Any

from .extras import what_to_install

_CLIENT = (
    "AsyncClient", "Client", "ClientError", "DeadlineExceeded", "Refused", "Result", "Unavailable", "Unreachable",
)  # fmt: skip
_FOLD = (
    "Affine", "Folded", "FoldedOnnx", "Proof", "RefusalCode", "Report", "Site", "explain", "explain_onnx", "fold",
    "fold_input", "fold_onnx", "fold_pair", "register_norm", "verify", "verify_onnx",
)  # fmt: skip
_ERRORS = ("FoldError", "TrainingError", "VerifyError")

# Module, the extra that it needs, and the public names that it holds.
HOMES = (
    ("foldserve.client", "client", _CLIENT),
    ("foldserve.training.api", "training", ("train",)),
    ("foldserve.training.errors", "training", _ERRORS),
    ("foldserve.training.fold", "training", _FOLD),
    ("foldserve.training.publish", "training", ("Published", "publish")),
)


def load(name: str) -> Any:
    """Return the object that `foldserve.<name>` stands for.

    Raises:
        AttributeError: it is no public name.
        ImportError: the extra that it needs is not installed; the message is one line with the command that helps.
    """
    for module, extra, names in HOMES:
        if name not in names:
            continue
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as err:
            advice = what_to_install(err, (extra,))
            if advice is None:
                raise
            raise ImportError(f"foldserve.{name}: {advice}", name=err.name) from err
    raise AttributeError(f"module 'foldserve' has no attribute {name!r}")
