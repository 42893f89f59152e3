"""How much one request may hold, and the words in which a refusal quotes it."""

from dataclasses import dataclass

from service.errors import TooManyRows


@dataclass(frozen=True)
class Limits:
    """How much one request may hold.

    Args:
        rows: images in one body.
        pixels: width x height of one encoded image, checked before it is decoded; see `PixelBudget` for their sum.
    """

    rows: int
    pixels: int


def check_rows(rows: int, limits: Limits) -> None:
    """Refuse more images than one request may hold."""
    if rows > limits.rows:
        raise TooManyRows(f"{rows} images, expected at most {limits.rows} in one request: send them in several")


def clip(text: str, limit: int = 40) -> str:
    """Return text that a client sent, short enough to stand in a message."""
    return text if len(text) <= limit else f"{text[:limit]}..."
