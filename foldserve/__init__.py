"""Train a BatchNorm network, fold it exactly, export it with its proof, and serve it truthfully.

The public names are loaded on first use: `import foldserve` alone needs no extra, and a name whose extra is missing
says which one to install.

Importing changes nothing of the process: no environment variable, no thread, no handler of signals or logs. So the
telemetry of onnxruntime, which `fold_onnx`, `verify` and others load, stays as its user has it: on, in the official
packages, unless `ORT_DISABLE_TELEMETRY=1` was set before. The commands set it themselves.
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = [
    "Affine",
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "FoldError",
    "Folded",
    "FoldedOnnx",
    "Proof",
    "Published",
    "RefusalCode",
    "Refused",
    "Report",
    "Result",
    "Site",
    "TrainingError",
    "Unavailable",
    "Unreachable",
    "VerifyError",
    "__version__",
    "explain",
    "explain_onnx",
    "fold",
    "fold_input",
    "fold_onnx",
    "fold_pair",
    "publish",
    "register_norm",
    "train",
    "verify",
    "verify_onnx",
]

if TYPE_CHECKING:
    from .client import (
        AsyncClient,
        Client,
        ClientError,
        DeadlineExceeded,
        Refused,
        Result,
        Unavailable,
        Unreachable,
    )
    from .training.api import train
    from .training.errors import FoldError, TrainingError, VerifyError
    from .training.fold import (
        Affine,
        Folded,
        FoldedOnnx,
        Proof,
        RefusalCode,
        Report,
        Site,
        explain,
        explain_onnx,
        fold,
        fold_input,
        fold_onnx,
        fold_pair,
        register_norm,
        verify,
        verify_onnx,
    )
    from .training.publish import Published, publish
else:  # a type checker that saw `__getattr__` would believe in every misspelt name
    from .lazy import load

    def __getattr__(name):
        """Load a public name on first use.

        Raises:
            ImportError: an extra is missing; the message names it.
        """
        globals()[name] = value = load(name)
        return value

    def __dir__():
        return sorted(__all__)
