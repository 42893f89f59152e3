"""The versions of one model that answer, and the labels that point at them.

Immutable: a change replaces the whole, so that no request sees a label half moved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from foldserve.format.names import is_version

from ..errors import ModelNotFound, NotReady
from .model import Model
from .state import LATEST


@dataclass(frozen=True)
class VersionTable:
    """One model.

    Attributes:
        name: of the model.
        latest: the version that answers where none is named.
        labels: other label -> version; only those whose version answers.
        loaded: version -> what answers.
        lost: version -> why this process cannot answer as it, although others of the service may.
    """

    name: str
    latest: int
    labels: Mapping[str, int] = field(default_factory=dict)
    loaded: Mapping[int, Model] = field(default_factory=dict)
    lost: Mapping[int, str] = field(default_factory=dict)

    def choose(self, version: int | None = None, label: str | None = None) -> Model:
        """Return the version that a request means; neither given means `latest`.

        Raises:
            ModelNotFound: no such version is served, or no such label is known.
            NotReady: what was served as this version is lost.
        """
        if version is None:
            version = self._version_of(label or LATEST)
        model = self.loaded.get(version)
        if model is None and version in self.lost:
            raise NotReady(f"model {self.name!r} version {version}: {self.lost[version]}")
        if model is None:
            served = ", ".join(map(str, sorted(self.loaded)))
            plural = "s" if len(self.loaded) > 1 else ""
            raise ModelNotFound(f"model {self.name!r} is served in version{plural} {served}, not {version}")
        return model

    def labels_of(self, version: int) -> list[str]:
        """Return the labels that point at a version, `latest` first."""
        named = sorted(label for label, target in self.labels.items() if target == version)
        return [LATEST, *named] if version == self.latest else named

    def _version_of(self, label: str) -> int:
        if label == LATEST:
            return self.latest
        if label not in self.labels:
            known = [LATEST, *sorted(self.labels)]
            raise ModelNotFound(f"model {self.name!r} has no label {label[:64]!r}; there are {known}")
        return self.labels[label]


def version_number(text: str | None) -> int | None:
    """Return a version that a request names, as a number; None where it names none.

    Raises:
        ModelNotFound: it is no positive whole number, so there cannot be such a version.
    """
    if not text:
        return None
    if not is_version(text):
        raise ModelNotFound(f"there is no version {text[:40]!r}; versions are positive whole numbers")
    return int(text)
