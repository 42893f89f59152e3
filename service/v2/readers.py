"""The request readers of the models that are loaded; each is dropped with its model."""

from weakref import WeakKeyDictionary

from ..bodies.limits import Limits
from ..engines.engine import Engine
from ..live.model import Model
from .pictures import Pictures
from .request import RequestReader


class Readers:
    """A request reader for each model that is loaded, gone when the model goes.

    Args:
        limits: how much one request may hold.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._readers: WeakKeyDictionary[Engine, RequestReader] = WeakKeyDictionary()

    def of(self, model: Model) -> RequestReader:
        """Return the reader for one version of a model."""
        reader = self._readers.get(model.engine)
        if reader is None:
            pictures = None if model.image is None else Pictures(model.image, self._limits)
            reader = RequestReader(model.engine.inputs, model.engine.outputs, self._limits.rows, pictures)
            self._readers[model.engine] = reader
        return reader
