"""The request readers of the models that are loaded; each is dropped with its model."""

from weakref import WeakKeyDictionary

from ..engines.engine import Engine
from ..live.model import Model
from .request import RequestReader


class Readers:
    """A request reader for each model that is loaded, gone when the model goes.

    Args:
        max_rows: rows in one request.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._readers: WeakKeyDictionary[Engine, RequestReader] = WeakKeyDictionary()

    def of(self, model: Model) -> RequestReader:
        """Return the reader for one version of a model."""
        reader = self._readers.get(model.engine)
        if reader is None:
            reader = RequestReader(model.engine.inputs, model.engine.outputs, self._max_rows)
            self._readers[model.engine] = reader
        return reader
