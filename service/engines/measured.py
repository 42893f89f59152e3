"""What was measured of a model on this machine: which graph, how many threads, which batch sizes.

It comes from an engine that serves, from the process that proves versions first, or from a file, and says what is
fast; never what is right. Whoever takes it over still compares every answer. Knows no session.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """One model, or all whose graphs differ in nothing but weights.

    Attributes:
        rewrite: how the graph that is fastest differs from the published one; None where it does not.
        threaded_from: the smallest bucket that runs on all threads; None where all run on one.
        seconds: of one run of each bucket that is worth having, rising.
    """

    rewrite: str | None
    threaded_from: int | None
    seconds: Mapping[int, float]

    def to_json(self) -> str:
        """Return it as text."""
        seconds = {str(bucket): seconds for bucket, seconds in self.seconds.items()}
        return json.dumps({"rewrite": self.rewrite, "threaded_from": self.threaded_from, "seconds": seconds})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Measured | None":
        """Return what a text says; None where it is damaged."""
        try:
            found = json.loads(text)
            rewrite, first, stated = found["rewrite"], found["threaded_from"], found["seconds"]
            seconds = {int(bucket): float(each) for bucket, each in stated.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        is_sound = (
            seconds
            and list(seconds) == sorted(seconds)
            and min(seconds) >= 1
            and all(0 < each < math.inf for each in seconds.values())
            and (first is None or first in seconds)
            and (rewrite is None or isinstance(rewrite, str))
        )
        return cls(rewrite, first, seconds) if is_sound else None
