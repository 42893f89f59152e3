"""From a network of one's own to a proven version: where its parts come from, and what is made of them."""

from .api import publish
from .published import Published

__all__ = ["Published", "publish"]
