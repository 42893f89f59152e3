"""What operators decided about models: labels, what is loaded by hand, shadows, and the history of it all.

Plain values, and how they stand in a JSON document; where that is kept is known to `state_dir`. Versions are numbers
here; whether they exist or answer is not known.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from ..errors import InvalidInput
from ..request_context import Caller

T = TypeVar("T")

LATEST = "latest"
PROMOTE, ROLLBACK = "promote", "rollback"
_FORMAT = 1
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_HISTORY = 100  # moves that are remembered of one model
NOBODY = Caller()


@dataclass(frozen=True, slots=True)
class Move:
    """A label that was moved.

    Attributes:
        at: when, in seconds since 1970.
        label: which.
        action: by what call.
        source: version that it pointed at before.
        target: version that it points at since; None: `latest` follows the newest one.
        key: name of the key of the call.
        address: where the call was sent from.
    """

    at: float
    label: str
    action: str
    source: int | None
    target: int | None
    key: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets a copy of live inputs until a moment in seconds since 1970."""

    version: int
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class ModelState:
    """What was decided about one model.

    Attributes:
        labels: label -> version. `latest` stands here only while it is pinned; else it follows the newest version.
        loaded: versions that are to be loaded whether or not a label points at them.
        is_unloaded: the model is to answer nothing at all.
        shadow: the candidate that is being compared, if any.
        history: moves of labels, oldest first.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    loaded: tuple[int, ...] = ()
    is_unloaded: bool = False
    shadow: Shadow | None = None
    history: tuple[Move, ...] = ()

    def moved(
        self, label: str, target: int | None, action: str, source: int | None, caller: Caller = NOBODY
    ) -> "ModelState":
        """Return the state after a label was moved; a target of None lets `latest` follow the newest version again."""
        labels = {name: version for name, version in self.labels.items() if name != label}
        if target is not None:
            labels[label] = target
        move = Move(time.time(), label, action, source, target, caller.key, caller.address)
        history = (*self.history, move)[-_HISTORY:]
        return replace(self, labels=labels, history=history)

    def left_behind(self, label: str) -> set[int]:
        """Return the versions that a label was rolled back from since it was last promoted."""
        left: set[int] = set()
        for move in reversed([move for move in self.history if move.label == label]):
            if move.action != ROLLBACK:
                break
            if move.source is not None:
                left.add(move.source)
        return left

    def before(self, label: str) -> int | None:
        """Return what a label pointed at before its last promote that was not taken back; None where nothing was."""
        undone = 0
        for move in reversed([move for move in self.history if move.label == label]):
            if move.action == ROLLBACK:
                undone += 1
            elif undone:
                undone -= 1
            else:
                return move.source
        return None


def check_label(label: object) -> str:
    """Return a label that may be moved.

    Raises:
        InvalidInput: it is not a letter followed by at most 63 letters, digits and _ . -
    """
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise InvalidInput(f"label {str(label)[:80]!r}, expected a letter and at most 63 letters, digits, _ . or -")
    return label


def write_states(states: Mapping[str, ModelState]) -> str:
    """Return what was decided about each model as JSON."""
    models = {name: _entry(state) for name, state in sorted(states.items())}
    return json.dumps({"format": _FORMAT, "models": models}, indent=1)


def parse_states(data: bytes) -> dict[str, ModelState]:
    """Return what was decided about each model.

    Raises:
        ValueError: the bytes are not what `write_states` returns; the message says what is wrong.
    """
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT:
            raise ValueError(
                f"format {document['format']!r}, expected {_FORMAT}: another release wrote it, whose format has changed"
            )
        return {str(name): _state(entry) for name, entry in document["models"].items()}
    except KeyError as err:
        raise ValueError(f"there is no {err}") from err
    except (TypeError, AttributeError, InvalidInput, RecursionError) as err:
        raise ValueError(str(err)) from err


def _entry(state: ModelState) -> dict[str, Any]:
    """Return the JSON of one model; callers stand beside the history, in which older releases know no such fields."""
    entry = asdict(state)
    callers = [[move.pop("key"), move.pop("address")] for move in entry["history"]]
    return {**entry, "callers": callers}


def _state(entry: Mapping[str, Any]) -> ModelState:
    shadow, history = entry["shadow"], entry["history"]
    callers = entry.get("callers", [])
    if len(callers) != len(history):  # a release that knows of no callers has written since
        callers = [(None, None)] * len(history)
    return ModelState(
        labels={check_label(label): _version(version) for label, version in entry["labels"].items()},
        loaded=tuple(map(_version, _of_type(entry["loaded"], list))),
        is_unloaded=_of_type(entry["is_unloaded"], bool),
        shadow=None if shadow is None else _shadow(**shadow),
        history=tuple(_move(*caller, **move) for caller, move in zip(callers, history, strict=True)),
    )


def _shadow(version: object, since: object, until: object) -> Shadow:
    return Shadow(_version(version), _moment(since), _moment(until))


def _move(
    key: object, address: object, /, at: object, label: object, action: object, source: object, target: object
) -> Move:
    source, target = (None if version is None else _version(version) for version in (source, target))
    key, address = (None if text is None else _of_type(text, str) for text in (key, address))
    return Move(_moment(at), check_label(label), _of_type(action, str), source, target, key, address)


def _version(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"version {value!r}, expected a positive whole number")
    return value


def _moment(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"time {value!r}, expected seconds since 1970")
    return value  # type: ignore[return-value]


def _of_type(value: Any, expected: type[T]) -> T:
    if type(value) is not expected:
        raise ValueError(f"{value!r}, expected a {expected.__name__}")
    return value
