"""The ONNX case list of the scoreboard: small models around one norm each, with the verdict that exact algebra gives.

Read by `benchmarks/folding.py`, which runs them through every tool, and by the tests, which hold our own fold to the
verdicts.
"""

from benchmarks.folding_net import FOLD, Case, Net
from benchmarks.folding_onnx_axes import axes
from benchmarks.folding_onnx_bodies import bodies
from benchmarks.folding_onnx_dialects import dialects
from benchmarks.folding_onnx_forms import forms
from benchmarks.folding_onnx_forward import forward, readers
from benchmarks.folding_onnx_layers import convolutions, matrices
from benchmarks.folding_onnx_neighbours import neighbours
from benchmarks.folding_onnx_paths import between

__all__ = ["FOLD", "Case", "Net", "cases"]


def cases() -> list[Case]:
    """Every case, in the order of the tables."""
    lists = (convolutions, matrices, axes, neighbours, bodies, between, forward, readers, forms, dialects)
    return [case for one in lists for case in one()]
