"""All lessons, in the order in which the book's section tells things."""

from collections.abc import Sequence

from .book_lessons import EXERCISE, NOISE, PLACEMENT
from .depth import DEEP
from .formula import FORMULA, SOFTMAX
from .kalman import KALMAN
from .landscape import LANDSCAPE
from .layer_norm import LAYER_NORM
from .lesson import Lesson
from .saturation import SATURATION
from .speed_lessons import BATCH_SIZE, CONVERGENCE, LEARNING_RATES
from .starting_values import STARTING_VALUES

LESSONS: Sequence[Lesson] = (
    FORMULA,
    SOFTMAX,
    SATURATION,
    DEEP,
    LANDSCAPE,
    CONVERGENCE,
    LEARNING_RATES,
    BATCH_SIZE,
    NOISE,
    PLACEMENT,
    KALMAN,
    STARTING_VALUES,
    LAYER_NORM,
    EXERCISE,
)
