"""Lessons that train the book's network: placement, noise, exercises. Networks are shared: each is trained once.

A table of variants for each lesson and what its figures say; how they are trained and drawn is `trained`'s.
"""

from .lesson import Figures, Finding, Lesson, Reading
from .trained import SAME, book_arm, compared, draw_arms, mean_of, measuring, spread_of, table

BN, NONE = "BN", "no norm"
PLACED = {
    "before the sigmoid": book_arm("lenet"),
    "after the sigmoid": book_arm("norm-after"),
    "on each layer's input": book_arm("norm-inputs", norm="none"),
    NONE: book_arm("lenet", norm="none"),
}
NOISY = {
    BN: book_arm("lenet"),
    "noisy BN": book_arm("noisy-norm"),
    "dropout beside BN": book_arm("dropout"),
    "dropout alone": book_arm("dropout", norm="none"),
    NONE: book_arm("lenet", norm="none"),
}
EXERCISES = {
    "all four norms": book_arm("lenet"),
    "no bias before norms": book_arm("no-bias"),
    "gamma 1, beta 0": book_arm("norm-fixed"),
    "norms 1 and 2": book_arm("norms-1-2"),
    "norms 3 and 4": book_arm("norms-3-4"),
    "norms 1 and 3": book_arm("norms-1-3"),
    "norms 2 and 4": book_arm("norms-2-4"),
    NONE: book_arm("lenet", norm="none"),
}


def read_placement(figures: Figures) -> Reading:
    """Return how each place does beside the usual one, and that beside none."""
    before, after, inputs, none = figures["arms"]
    said = "also a place for it"
    return table(
        figures,
        [
            compared(figures, before, none, "the usual place helps", lambda away: away > 0),
            compared(figures, after, before, said, lambda away: away > -SAME),
            compared(figures, inputs, before, said, lambda away: away > -SAME),
        ],
    )


def read_noise(figures: Figures) -> Reading:
    """Return whether shift on purpose hurts, what dropout adds, and how far train and test are apart."""
    beside = "dropout beside BN"
    gap, with_dropout = (mean_of(figures, label, "train_accuracy") - mean_of(figures, label) for label in (BN, beside))
    return table(
        figures,
        [
            compared(figures, "noisy BN", BN, "trains as well: the shift is not the reason", lambda away: away > -SAME),
            compared(figures, "noisy BN", NONE, "far better than without norms", lambda away: away > 0.05),
            compared(figures, beside, BN, "not needed: no gain", lambda away: away < SAME / 2),
            Finding("train minus test accuracy, BN, and with dropout beside it", f"{gap:.4f}, {with_dropout:.4f}",
                    "BN regularizes: dropout closes no gap", gap - with_dropout < 2 * SAME),
        ],
    )  # fmt: skip


def read_exercises(figures: Figures) -> Reading:
    """Return what the book asks its readers to try."""
    every, no_bias, fixed, *some, none = figures["arms"]
    whole = mean_of(figures, every)
    best = max(some, key=lambda label: mean_of(figures, label))
    least = spread_of(figures, min(some, key=lambda label: mean_of(figures, label)))
    return table(
        figures,
        [
            compared(figures, no_bias, every, "the bias is redundant", lambda away: abs(away) < SAME),
            compared(figures, fixed, every, "gamma and beta give back what a norm takes", lambda away: away < 0),
            Finding("best of two norms out of four", f"{best}, {mean_of(figures, best):.4f}",
                    f"not all are needed (all four: {whole:.4f})", mean_of(figures, best) > whole - SAME),
            Finding("worst of two out of four, beside none at all", f"{least.mean:.4f}, {mean_of(figures, none):.4f}",
                    "some are better than none", least.mean > mean_of(figures, none)),
        ],
    )  # fmt: skip


PLACEMENT = Lesson(
    "placement", "a norm stands before the activation, or on a layer's input",
    measuring(PLACED), read_placement, draw_arms, seeds=5,
)  # fmt: skip
NOISE = Lesson(
    "noise", "noisy norms train as well, so covariate shift is not the reason; dropout beside a norm is not needed",
    measuring(NOISY), read_noise, draw_arms, seeds=5,
)  # fmt: skip
EXERCISE = Lesson(
    "exercises", "the book's exercises: fix gamma and beta, norms in some layers, leave out the bias",
    measuring(EXERCISES), read_exercises, draw_arms, seeds=5,
)  # fmt: skip
