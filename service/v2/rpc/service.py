"""What each call of the protocol does: messages in, messages out.

The counterpart of the HTTP routes, on the same registry. Errors are raised as everywhere; `server` gives them their
status. Keeps no state.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from ...bodies.limits import QUICK_BYTES, Limits
from ...bodies.predict_body import pixels_of
from ...bodies.work_queue import WorkQueue
from ...error_answers import ErrorLog, error_answer
from ...errors import ServiceError, Unsupported, clip
from ...inference import answer, count, served_model
from ...live.control import ModelControl, body_version
from ...live.model import Model
from ...live.registry import Registry
from ...request_context import RequestContext
from ...settings import Settings
from ..metadata import EXTENSIONS, model_config, model_metadata
from ..parameters import FINAL_RESPONSE
from ..pictures import Pictures
from ..request import InferRequest
from .calls import DETAIL_CHARACTERS, StreamedMessage
from .descriptors import INFERENCE
from .messages import declared_tensors, from_dict, read_request, write_response
from .wire import InferMessage

_MESSAGES = INFERENCE.messages
_STREAM = f"/{INFERENCE.service}/ModelStreamInfer"
STREAM_AHEAD = 16  # requests of one stream that may be answered at the same time


class InferenceService:
    """The calls of `GRPCInferenceService`, by their names.

    Args:
        registry: the models.
        control: what an operator may do with them.
        settings: the limits.
        error_log: told of every error that a stream goes on after.
        decoding: the work of decoding pictures.
        name: of the service, for its metadata.
        version: of the service.
    """

    def __init__(
        self,
        registry: Registry,
        control: ModelControl,
        settings: Settings,
        error_log: ErrorLog,
        decoding: WorkQueue,
        name: str,
        version: str,
    ) -> None:
        self._registry = registry
        self._control = control
        self._settings = settings
        self._error_log = error_log
        self._decoding = decoding
        self._name = name
        self._version = version

    async def ServerLive(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Answer: a process that cannot is dead."""
        return _MESSAGES["ServerLiveResponse"](live=True)

    async def ServerReady(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Say whether every model gave its golden answers."""
        return _MESSAGES["ServerReadyResponse"](ready=self._registry.wants_requests)

    async def ServerMetadata(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Name the service and the extensions that it honours."""
        return _MESSAGES["ServerMetadataResponse"](name=self._name, version=self._version, extensions=EXTENSIONS)

    async def ModelReady(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Say whether a model answers; one that does not exist is not ready."""
        try:
            self._registry.check_wanted()
            self._model(request.name, request.version)
        except ServiceError:
            return _MESSAGES["ModelReadyResponse"](ready=False)
        return _MESSAGES["ModelReadyResponse"](ready=True)

    async def ModelMetadata(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Describe inputs and outputs; the batch is the first axis of each."""
        model = self._model(request.name, request.version)
        versions = sorted(self._registry.tables[model.name].loaded)
        return from_dict("ModelMetadataResponse", model_metadata(model, versions))

    async def ModelConfig(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Describe how a model is batched and where it runs."""
        config = model_config(self._model(request.name, request.version), self._settings.max_rows)
        return from_dict("ModelConfigResponse", {"config": config})

    async def ModelStatistics(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Count requests, rows and batches; of all models where none is named."""
        await self._registry.others_have_counted()
        models = [self._model(request.name, request.version)] if request.name else self._registry.all_versions()
        stats = [model.statistics.to_json(model.name, model.version) for model in models]
        return from_dict("ModelStatisticsResponse", {"model_stats": stats})

    async def ModelInfer(self, request: InferMessage, context: RequestContext) -> Any:  # noqa: N802
        """Answer with the outputs, raw unless the request wants them typed."""
        model = self._model(request.head.model_name, request.head.model_version)
        with model.in_use():
            infer_request = await self._read(request, model, context)
            deadline = context.deadline(infer_request.timeout_seconds)
            result = await answer(self._registry, model, infer_request.inputs, deadline, context)
        response = write_response(model.name, model.version, infer_request, result.outputs, model.class_names)
        count(model, result, context)
        return response

    async def _read(self, request: InferMessage, model: Model, context: RequestContext) -> InferRequest:
        """Return the request in a message; what would hold up the event loop is read in a thread."""
        pictures = None if model.image is None else Pictures(model.image, Limits.of(self._settings))
        arguments = (request, model.engine.inputs, model.engine.outputs, self._settings.max_rows, pictures)
        if pictures is None or not pictures.are_declared(declared_tensors(request)):
            is_quick = bool(request.raw) or request.size <= QUICK_BYTES
            return await context.parse(read_request, *arguments, is_quick=is_quick)
        started = time.perf_counter()
        try:
            return await self._decoding.run(
                lambda job: read_request(*arguments, job.beat),
                pixels=pixels_of(request.size),
                size=request.size,
                deadline=context.deadline(),
                is_gone=lambda: False,  # then this call is cancelled, and its work with it
            )
        finally:
            context.stages["decode"] = time.perf_counter() - started

    async def ModelStreamInfer(  # noqa: N802
        self, messages: AsyncIterator[StreamedMessage], context: RequestContext
    ) -> AsyncIterator[Any]:
        """Answer each request of a stream in its order; a refused one gets its sentence and the stream goes on."""
        waiting: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(STREAM_AHEAD)

        async def start_all() -> None:
            try:
                async for message in messages:
                    task = asyncio.create_task(self._stream_answer(message, context))
                    task.add_done_callback(message.release)
                    await waiting.put(task)
            except Exception:
                await waiting.put(None)
                raise
            await waiting.put(None)

        starting = asyncio.create_task(start_all())
        try:
            while (task := await waiting.get()) is not None:
                yield await task
            await starting
        finally:
            starting.cancel()
            while not waiting.empty():
                if (task := waiting.get_nowait()) is not None:
                    task.cancel()

    async def RepositoryIndex(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """List every version, on disk or in memory, with the reason where one does not serve."""
        return from_dict("RepositoryIndexResponse", {"models": await self._control.index(ready_only=request.ready)})

    async def RepositoryModelLoad(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Load the newest version, or the one that the parameter `version` names."""
        version = None
        for name, value in request.parameters.items():
            if name != "version":
                raise Unsupported(f"parameters.{clip(name)}: a model is loaded from the models folder as it is")
            version = body_version({"version": getattr(value, value.WhichOneof("parameter_choice") or "", None)})
        await self._control.load(request.model_name, version, context.caller)
        return _MESSAGES["RepositoryModelLoadResponse"]()

    async def RepositoryModelUnload(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Let a model answer nothing any more until it is loaded again."""
        await self._control.unload(request.model_name, context.caller)
        return _MESSAGES["RepositoryModelUnloadResponse"]()

    async def _stream_answer(self, message: StreamedMessage, stream: RequestContext) -> Any:
        context = stream.next_in_stream()
        refused = _MESSAGES["ModelInferResponse"]()
        refused.parameters[FINAL_RESPONSE].bool_param = True
        try:
            request = message.read()
            refused.model_name, refused.id = request.head.model_name, request.head.id
            response = await self.ModelInfer(request, context)
            response.parameters[FINAL_RESPONSE].bool_param = True
            return _MESSAGES["ModelStreamInferResponse"](infer_response=response)
        except Exception as err:
            self._error_log.note(err, context.request_id, _STREAM)
            sentence = error_answer(err, context.request_id).message[:DETAIL_CHARACTERS]
            return _MESSAGES["ModelStreamInferResponse"](error_message=sentence, infer_response=refused)

    def _model(self, name: str, version: str) -> Model:
        return served_model(self._registry, name, version)
