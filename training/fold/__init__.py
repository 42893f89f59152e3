"""Fold BatchNorm and its relatives into neighbouring weights: exactly, with proof, or not at all and saying why."""

from training.fold.api import Folded, explain, fold, fold_input, verify
from training.fold.core import Affine
from training.fold.refusals import RefusalCode
from training.fold.registry import register_norm
from training.fold.report import Proof, Report, Site

__all__ = [
    "Affine",
    "Folded",
    "Proof",
    "RefusalCode",
    "Report",
    "Site",
    "explain",
    "fold",
    "fold_input",
    "register_norm",
    "verify",
]
