"""One version of a model in memory: its artifact, its checked engine, its batcher, and the requests that use it."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from foldserve.format.image import ImageRecipe
from foldserve.format.task import Task

from ..artifacts.repository import Artifact
from ..batching.batcher import Batcher
from ..engines.engine import Engine
from .statistics import Statistics

UNVERIFIED = "it has no manifest, so that its answers are not verified"


class _Users:
    """How many requests use a version, and a signal when the last one has ended."""

    def __init__(self) -> None:
        self.count = 0
        self.gone = asyncio.Event()


@dataclass(frozen=True, eq=False)
class Model:
    """One version of a model, ready to answer."""

    artifact: Artifact
    engine: Engine
    batcher: Batcher
    executor: ThreadPoolExecutor
    statistics: Statistics
    users: _Users = field(default_factory=_Users)

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.artifact.name

    @property
    def version(self) -> int:
        """The version that answers."""
        return self.artifact.version

    @property
    def is_verified(self) -> bool:
        """Whether it has golden answers and gave them."""
        return self.artifact.is_verified

    @cached_property
    def header_lines(self) -> bytes:
        """The header lines about it in each of its answers."""
        return b"".join(b"%b: %b\r\n" % header for header in self.headers)

    @cached_property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The same one by one: the version, whether it is unverified, and how raw pixels of several channels lie."""
        headers = [(b"x-model-version", b"%d" % self.version)]
        if not self.is_verified:
            headers.append((b"x-model-verified", b"false"))
        if self.image is not None and self.image.channels > 1:
            headers.append((b"x-image-layout", self.image.layout.encode()))
        return tuple(headers)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names, index = class id."""
        return self.engine.class_names

    @property
    def image(self) -> ImageRecipe | None:
        """How a picture becomes a row."""
        return self.engine.image

    @property
    def task(self) -> Task:
        """What its outputs mean."""
        return self.engine.task

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep this version from being unloaded while a request that has chosen it is read and answered."""
        self.users.count += 1
        try:
            yield
        finally:
            self.users.count -= 1
            if not self.users.count:
                self.users.gone.set()
