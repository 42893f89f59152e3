"""Pins and labels that are declared, by flags and in a file that is watched: the same for every replica of a service.

What is declared wins over what operators decided by calls, and calls that contradict it are refused. The file may come
from a ConfigMap or a bucket: one that cannot be read, or contradicts itself or the flags, changes nothing.

    [models.lenet-bn]
    pin = 2
    labels = {canary = 3, stable = 2}
"""

import logging
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldserve.format.names import MODEL_NAME_RULE, is_model_name, is_version

from ..errors import ArtifactInvalid, Conflict, InvalidInput
from ..metrics import Metrics
from ..regular_file import read_regular
from .state import LATEST, ModelState, check_label

_log = logging.getLogger(__name__)

_MOST_BYTES = 1024 * 1024
_SETTLE_SECONDS, _LOOKS = 0.1, 10

Labels = Mapping[str, int]  # label -> version; a pin is the label `latest`


class Declared:
    """What is declared of each model, read again when its file is another one.

    Args:
        pins: `name=version` each.
        labels: `name:label=version` each.
        file: of more of both; None where there is none.
        metrics: show whether the last edit is in force.

    Attributes:
        loss: why what holds is older than the file; None while it is not.
    """

    def __init__(self, pins: Iterable[str], labels: Iterable[str], file: Path | None, metrics: Metrics) -> None:
        self.loss: str | None = None
        self._file = file
        self._metrics = metrics
        self._flags: dict[str, dict[str, int]] = {}
        for entry in (*pins, *labels):
            place, _, version = entry.rpartition("=")
            name, _, label = place.partition(":")
            self._flags.setdefault(name, {})[label or LATEST] = int(version)
        self._models: Mapping[str, Labels] = self._flags
        self._seen: bytes | None = None  # the content that was judged last, good or bad

    def start(self) -> None:
        """Read the file for the first time.

        Raises:
            ArtifactInvalid: it cannot be read: nothing else is known to hold.
        """
        self._read()
        if self.loss is not None:
            raise ArtifactInvalid(self.loss)

    def look(self) -> bool:
        """Read the file if it is another one, in a thread; returns whether anything has changed."""
        before, loss = self._models, self.loss
        self._read()
        if self.loss is not None and self.loss != loss:
            _log.error("%s; what was declared before holds", self.loss)
        if self._models != before:
            _log.info("declared", extra={"models": {name: dict(labels) for name, labels in self._models.items()}})
        return self._models != before

    @property
    def models(self) -> Mapping[str, Labels]:
        """What is declared of every model."""
        return self._models

    def of(self, name: str) -> Labels:
        """Return the versions that the labels of a model are declared to point at."""
        return self._models.get(name, {})

    def applied(self, name: str, state: ModelState) -> ModelState:
        """Return what was decided about a model with what is declared in its place."""
        declared = self.of(name)
        if not declared:
            return state
        return replace(state, labels={**state.labels, **declared}, is_unloaded=False)

    def check_move(self, name: str, label: str, version: int | None) -> None:
        """Let a label be moved.

        Raises:
            Conflict: it is declared to point at another version.
        """
        declared = self.of(name).get(label)
        if declared is not None and declared != version:
            raise Conflict(
                f"label {label!r} of model {name!r} is declared as version {declared} by {self._source(name, label)}; "
                "change that instead"
            )

    def check_unload(self, name: str) -> None:
        """Let a model be unloaded.

        Raises:
            Conflict: versions of it are declared.
        """
        for label, version in self.of(name).items():
            raise Conflict(
                f"version {version} of model {name!r} is declared as {label!r} by {self._source(name, label)}; "
                "take it out there first"
            )

    def _source(self, name: str, label: str) -> str:
        flag = "--pin" if label == LATEST else "--label"
        return flag if label in self._flags.get(name, {}) else str(self._file)

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            content = _settled(self._file, self._seen)
            if content != self._seen:
                self._seen = content
                self._models = _merged(self._flags, parse_declared(content.decode()))
                self.loss = None
        except OSError as err:
            self._seen = None
            self.loss = f"deployment file {self._file} cannot be read: {err.strerror or err}"
        except ValueError as err:
            self.loss = f"deployment file {self._file} cannot be used: {err}"
        self._metrics.declared_lost.set(int(self.loss is not None))


def _settled(file: Path, known: bytes | None) -> bytes:
    """Return the content of a file once it stays the same: one that is written in place is empty for a moment."""
    content = read_regular(file, _MOST_BYTES)
    for _ in range(_LOOKS):
        if content == known:
            break
        time.sleep(_SETTLE_SECONDS)
        before, content = content, read_regular(file, _MOST_BYTES)
        if content == before:
            break
    return content


def parse_declared(text: str) -> dict[str, dict[str, int]]:
    """Return the labels of each model in a deployment file.

    Raises:
        ValueError: it is no TOML, holds a key that is not known, or a value that is no version.
    """
    document = tomllib.loads(text)
    _refuse_unknown("", document, {"models"})
    models = _table("models", document.get("models", {}))
    return {name: _labels(name, _table(f"models.{name}", entry)) for name, entry in models.items()}


def _labels(name: str, entry: Mapping[str, Any]) -> dict[str, int]:
    if not is_model_name(name):
        raise ValueError(f"models.{name[:80]}: expected as its name {MODEL_NAME_RULE}")
    place = f"models.{name}"
    _refuse_unknown(f"{place}.", entry, {"pin", "labels"})
    labels = _table(f"{place}.labels", entry.get("labels", {}))
    if LATEST in labels:
        raise ValueError(f"{place}.labels.{LATEST}: expected `pin`, which is what this label is called here")
    found = {_label(place, label): _version(f"{place}.labels.{label}", value) for label, value in labels.items()}
    return found | ({LATEST: _version(f"{place}.pin", entry["pin"])} if "pin" in entry else {})


def _label(place: str, label: str) -> str:
    try:
        return check_label(label)
    except InvalidInput as err:
        raise ValueError(f"{place}.labels: {err}") from err


def _version(place: str, value: object) -> int:
    if type(value) is not int or not is_version(str(value)):
        raise ValueError(f"{place} is {str(value)[:80]!r}, expected a version, such as 7")
    return value


def _table(place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is a {type(value).__name__}, expected a table")
    return value


def _refuse_unknown(place: str, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"{place}{unknown[0][:80]} is not known, expected {' or '.join(sorted(known))}")


def _merged(flags: Mapping[str, Labels], file: Mapping[str, Labels]) -> dict[str, dict[str, int]]:
    """Return both together.

    Raises:
        ValueError: they contradict each other.
    """
    merged = {name: dict(labels) for name, labels in flags.items()}
    for name, labels in file.items():
        for label, version in labels.items():
            if merged.setdefault(name, {}).setdefault(label, version) != version:
                flag = f"--pin {name}" if label == LATEST else f"--label {name}:{label}"
                raise ValueError(f"it declares version {version} where {flag}={merged[name][label]} is given")
    return merged
