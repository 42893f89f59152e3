"""Fold BatchNorm and its relatives into neighbouring weights: exactly, with proof, or not at all and saying why."""

from typing import TYPE_CHECKING, Any

from .api import Folded, explain, fold, fold_input, verify
from .core import Affine
from .pair import fold_pair
from .refusals import RefusalCode
from .registry import register_norm
from .report import Proof, Report, Site

if TYPE_CHECKING:
    from .onnx.api import FoldedOnnx, explain_onnx, fold_onnx, verify_onnx

__all__ = [
    "Affine",
    "Folded",
    "FoldedOnnx",
    "Proof",
    "RefusalCode",
    "Report",
    "Site",
    "explain",
    "explain_onnx",
    "fold",
    "fold_input",
    "fold_onnx",
    "fold_pair",
    "register_norm",
    "verify",
    "verify_onnx",
]


if not TYPE_CHECKING:  # a type checker that saw it would believe in every misspelt name

    def __getattr__(name: str) -> Any:
        """Load the ONNX front end on first use: folding PyTorch models needs no onnxruntime."""
        if name in ("FoldedOnnx", "explain_onnx", "fold_onnx", "verify_onnx"):
            from .onnx import api

            return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
