"""One promise of the table: what is asked, how it is measured, and what has to make the measurement fail.

A measurement gets a `Bench`, which starts services; the control is the same measurement on a bench whose services are
weakened, by a setting or by a change that `weakened` makes. So a measurement cannot pass by accident unseen.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import ROOT
from benchmarks.endurance.setup import Service, serving
from benchmarks.trust.asking import post

NORMAL_SECONDS = 1.0
MEMORY_SHARE = 1.10
SPARE_MIB = 8.0  # of a worker: what its allocator keeps of the first large request


@dataclass(frozen=True)
class Measured:
    """A figure, and whether it is as asked."""

    figure: str
    is_kept: bool
    is_broken: bool = False  # nothing was measured


@dataclass
class Bench:
    """Where a promise is measured.

    Attributes:
        workers: of each service.
        flags: that weaken it, for a control.
        change: the same, of those that `weakened` knows.
        seconds: of each load.
        models: that are served, unless the measurement has its own.
        after: what the services were like after the attacks.
    """

    workers: int = 1
    flags: str = ""
    change: str = ""
    seconds: float = 4.0
    models: Path = ROOT / "models"
    after: list[Measured] = field(default_factory=list)

    @contextmanager
    def serve(
        self,
        flags: str = "",
        change: str = "",
        models: Path | None = None,
        *,
        lives: bool = True,
        environment: Mapping[str, str] | None = None,
        warm: Callable[[Service], object] | None = None,
    ) -> Iterator[Service]:
        """Start a service; afterwards ask an honest request, and compare the memory, unless it did not live.

        Args:
            flags: of `foldserve serve`.
            change: of the service, beside that of a control.
            models: that it serves, in place of the bench's.
            lives: whether it is still there afterwards.
            environment: further variables.
            warm: asks what every service is asked sooner or later, before its memory is taken for the comparison.
        """
        changes = ",".join(name for name in (change, self.change) if name)
        words = f"{flags} {self.flags}"
        with serving(models or self.models, words, changes, self.workers, environment) as service:
            if warm is not None:
                warm(service)
            before = service.rss_kib() / 1024
            yield service
            if lives:
                self.after.append(aftermath(service, before, self.workers))


def aftermath(service: Service, before: float, workers: int) -> Measured:
    """Return whether the next honest request is normal within a second, and the memory within a tenth."""
    began = time.perf_counter()
    status = 0
    while status != 200 and time.perf_counter() - began < 5:
        status = post(service.port, service.bodies[0]).status
    seconds = time.perf_counter() - began
    most = before * MEMORY_SHARE + SPARE_MIB * workers
    while (mib := service.rss_kib() / 1024) > most and time.perf_counter() - began < 5:
        time.sleep(0.2)
    words = f"next request {status} after {seconds * 1e3:.0f} ms, memory {before:.0f} to {mib:.0f} MiB"
    return Measured(words, status == 200 and seconds <= NORMAL_SECONDS and mib <= most)


Measure = Callable[[Bench], Measured]


@dataclass(frozen=True)
class Row:
    """One promise.

    Attributes:
        id: of the reference, such as R8 or S14; K and a number for kinds of attack that are neither.
        promise: in a few words.
        asked: the figure.
        measure: makes the attack and returns the figure.
        flags: of the control: settings that switch the guard off.
        change: of the control: a change of the service, see `weakened`.
        workers: counts that it is measured with.
        part: of the whole run; a part takes at most ten minutes.
        is_quick: whether it belongs to the short form.
        why_not: why it is not run, or what is known where it is red.
        own_control: what the measurement itself holds against its passing by accident.
    """

    id: str
    promise: str
    asked: str
    measure: Measure | None
    flags: str = ""
    change: str = ""
    workers: tuple[int, ...] = (1, 2)
    part: int = 1
    is_quick: bool = False
    why_not: str = ""
    own_control: str = ""

    def run(self, bench: Bench) -> Measured:
        """Measure, and judge what came after the attack too; a measurement that breaks has not been kept."""
        assert self.measure is not None
        try:
            found = self.measure(bench)
        except Exception as err:  # whatever it is, the promise was not seen to be kept
            return Measured(f"{type(err).__name__}: {' '.join(str(err).split())[:200]}", is_kept=False, is_broken=True)
        worse = [after for after in bench.after if not after.is_kept]
        return replace(found, figure=f"{found.figure}; {worse[0].figure}", is_kept=False) if worse else found

    def control(self, bench: Bench) -> Measured:
        """The same with the guard switched off; what is asked must not be kept then."""
        found = self.run(replace(bench, flags=self.flags, change=self.change, after=[]))
        return replace(found, is_kept=not found.is_kept and not found.is_broken)
