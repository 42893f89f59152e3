"""Message classes and services of our two .proto files, read from the descriptor set that `make protos` compiles.

The types live in a descriptor pool of their own, so that a client library with the same package can be imported beside
them, and any release of protobuf will do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@dataclass(frozen=True)
class Method:
    """One rpc: its name, the classes it takes and gives, and which of them are streamed."""

    name: str
    request: Any
    response: Any
    is_client_streaming: bool
    is_server_streaming: bool


@dataclass(frozen=True)
class Proto:
    """What a .proto file declares; `service` with its package, as it stands in the path of a call."""

    messages: dict[str, Any]
    service: str
    methods: tuple[Method, ...]


def load(path: Path) -> dict[str, Proto]:
    """Return what each file of a descriptor set declares, by the file's name: its top-level messages and one service.

    Args:
        path: a serialized `google.protobuf.FileDescriptorSet`.
    """
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    for file in files:
        pool.Add(file)
    return {file.name: _proto(pool.FindFileByName(file.name)) for file in files}


def _proto(file: Any) -> Proto:
    messages = {name: message_factory.GetMessageClass(kind) for name, kind in file.message_types_by_name.items()}
    (service,) = file.services_by_name.values()
    methods = tuple(
        Method(
            method.name,
            messages[method.input_type.name],
            messages[method.output_type.name],
            method.client_streaming,
            method.server_streaming,
        )
        for method in service.methods
    )
    return Proto(messages, service.full_name, methods)


_FILES = load(Path(__file__).with_name("protos.binpb"))
INFERENCE, HEALTH = _FILES["inference.proto"], _FILES["health.proto"]
