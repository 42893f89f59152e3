"""The ONNX case list of the scoreboard: small models around one norm each, with the verdict that exact algebra gives.

Read by `benchmarks/folding/cases.py`, which runs them through every tool, and by the tests, which hold our own fold to
the verdicts.
"""

from tests.support.onnx_cases.axes import axes
from tests.support.onnx_cases.bodies import bodies
from tests.support.onnx_cases.dialects import dialects
from tests.support.onnx_cases.forms import forms
from tests.support.onnx_cases.forward import forward, readers
from tests.support.onnx_cases.layers import convolutions, matrices
from tests.support.onnx_cases.neighbours import neighbours
from tests.support.onnx_cases.net import FOLD, Case, Net
from tests.support.onnx_cases.paths import between

__all__ = ["FOLD", "Case", "Net", "cases"]


def cases() -> list[Case]:
    """Every case, in the order of the tables."""
    lists = (convolutions, matrices, axes, neighbours, bodies, between, forward, readers, forms, dialects)
    return [case for one in lists for case in one()]
