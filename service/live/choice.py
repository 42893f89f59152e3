"""Which versions of a model are wanted, and which of them `latest` shall point at: plain values in, plain values out.

Used by the reconciler. Knows neither the disk nor what is in memory.
"""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

from ..artifacts.triton_config import CONFIG_FILE, VersionPolicy
from .state import LATEST, ModelState
from .versions import VersionTable


@dataclass(frozen=True, slots=True)
class Choice:
    """One model at one moment.

    Attributes:
        state: what operators decided, and what is declared in its place.
        on_disk: its versions.
        held_back: those of them that do not become `latest` by themselves.
        policy: of the model's own configuration; None without.
        now: the version that `latest` points at; None while that is none.
        is_declared: whether `latest` is declared, and nothing else may answer.
        promotes_new: whether new versions take over by themselves.
    """

    state: ModelState
    on_disk: Sequence[int] = ()
    held_back: Container[int] = ()
    policy: VersionPolicy | None = None
    now: int | None = None
    is_declared: bool = False
    promotes_new: bool = True

    def candidates(self) -> list[int]:
        """Return versions for `latest`, best first: the pinned one, else the newest; and always the one that it is now.

        Those that their publisher holds back are taken when an operator says so, and else never.
        """
        newest_first = sorted((version for version in self.on_disk if version not in self.held_back), reverse=True)
        now = [] if self.now is None else [self.now]
        best: list[int] = []
        if self.is_declared:  # nothing else answers, but for what does until that is there
            best, newest_first = [self.state.labels[LATEST], *now], []
        elif LATEST in self.state.labels:
            best = [self.state.labels[LATEST], *now]
        elif now and self.policy is not None and not self.policy.served(now):  # it answers until another one can
            best = [*newest_first, *now]
        elif now:
            newer = [version for version in newest_first if version > now[0]]
            best = [*newer, *now] if self.promotes_new else now
        return list(dict.fromkeys([*best, *newest_first]))

    def wanted(self) -> set[int]:
        """Return the versions that operators want in memory, and those that the model's own policy does."""
        served = self.policy.served(self.on_disk) if self.policy is not None else set()
        shadow = [self.state.shadow.version] if self.state.shadow else []
        return served | {*self.state.labels.values(), *self.state.loaded, *shadow}

    def latest(self, loaded: Container[int], lost: Container[int]) -> int | None:
        """Return the version that `latest` shall point at, of those that can be; see `missing` for the arguments."""
        can_be = (v for v in self.candidates() if v in loaded or (v in lost and v == self.now))
        return next(can_be, None)

    def missing(self, loaded: Collection[int], lost: Container[int]) -> list[int]:
        """Return the versions that are to be loaded, best first: those that `latest` shall point at, then others.

        Args:
            loaded: versions in memory.
            lost: versions that this service serves and this process cannot load.
        """
        if self.state.is_unloaded:
            return []
        before = []
        for version in self.candidates():
            if version in loaded:
                break
            before.append(version)
            if version in lost and version == self.now:  # nothing else may take its place until its files are back
                break
        wanted = sorted(self.wanted() & set(self.on_disk) - set(loaded))
        return list(dict.fromkeys([*before, *wanted]))

    def labels(self, table: VersionTable | None, loaded: Container[int], lost: Container[int]) -> dict[str, int]:
        """Return where labels besides `latest` point: at what is wanted, until that is loaded at what they pointed at.

        Args:
            table: as it is now.
            loaded: as for `missing`.
            lost: as for `missing`.
        """
        labels = {}
        for label, version in self.state.labels.items():
            before = table.labels.get(label) if table else None
            if label == LATEST:
                continue
            if version in loaded or version in lost:
                labels[label] = version
            elif before is not None and before in loaded:
                labels[label] = before
        return labels


def left_out(models: Mapping[str, Sequence[int]], policies: Mapping[str, VersionPolicy]) -> dict[tuple[str, int], str]:
    """Return why versions that a policy does not name are no `latest`; the newest ones are, whatever their number."""
    reasons: dict[tuple[str, int], str] = {}
    for name, policy in policies.items():
        if policy.only is not None:
            reason = f"{CONFIG_FILE} serves versions {', '.join(map(str, policy.only))} alone"
            reasons |= {(name, version): reason for version in models[name] if version not in policy.only}
    return reasons
