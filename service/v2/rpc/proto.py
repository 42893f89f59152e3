"""A .proto file -> its message classes and its services, without a compiler and without generated code.

Reads the part of proto3 that our own two files are written in: messages, enums, oneofs, maps and rpcs. The types live
in a descriptor pool of their own, so that a client library with the same package can be imported beside them, and any
release of protobuf will do.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TOKEN = re.compile(r'//[^\n]*|\s+|("[^"]*"|[A-Za-z_][\w.]*|\d+|[{}()<>=;,])')
_SCALARS = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("double", "float", "int32", "int64", "uint32", "uint64", "bool", "string", "bytes")
}
_FIELD = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True)
class Method:
    """One rpc: its name, the classes it takes and gives, and which of them come as a stream."""

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


def load(path: Path) -> Proto:
    """Return the top-level messages and the one service of a .proto file.

    Raises:
        ValueError: the file is not written in the part of proto3 that is read here.
    """
    file = _Parser(path).file()
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name)
    messages = {name: message_factory.GetMessageClass(item) for name, item in found.message_types_by_name.items()}
    service = next(iter(found.services_by_name.values()))
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


class _Parser:
    """Recursive descent over the tokens of one file."""

    def __init__(self, path: Path) -> None:
        self._tokens = _tokens(path)
        self._next = next(self._tokens, "")
        self._file = descriptor_pb2.FileDescriptorProto(name=path.name, syntax="proto3")

    def file(self) -> descriptor_pb2.FileDescriptorProto:
        while self._next:
            keyword = self._take()
            if keyword == "syntax":
                self._statement("=", '"proto3"')
            elif keyword == "package":
                self._file.package = self._take()
                self._expect(";")
            elif keyword == "message":
                self._message(self._file.message_type.add())
            elif keyword == "enum":
                self._enum(self._file.enum_type.add())
            elif keyword == "service":
                self._service(self._file.service.add())
            else:
                raise ValueError(f"{self._file.name}: {keyword!r}, expected a message, an enum or a service")
        enums = _enum_names(self._file)
        for message in self._file.message_type:
            _mark_enums(message, enums)
        return self._file

    def _message(self, message: descriptor_pb2.DescriptorProto) -> None:
        message.name = self._take()
        self._expect("{")
        while not self._accept("}"):
            if self._accept("message"):
                self._message(message.nested_type.add())
            elif self._accept("enum"):
                self._enum(message.enum_type.add())
            elif self._accept("oneof"):
                self._oneof(message)
            else:
                self._field(message)

    def _oneof(self, message: descriptor_pb2.DescriptorProto) -> None:
        index = len(message.oneof_decl)
        message.oneof_decl.add(name=self._take())
        self._expect("{")
        while not self._accept("}"):
            self._field(message).oneof_index = index

    def _field(self, message: descriptor_pb2.DescriptorProto) -> descriptor_pb2.FieldDescriptorProto:
        field = message.field.add(label=_FIELD.LABEL_OPTIONAL)
        if self._accept("repeated"):
            field.label = _FIELD.LABEL_REPEATED
        if self._accept("map"):
            self._map(message, field)
        else:
            _set_type(field, self._take())
            field.name = self._take()
        self._expect("=")
        field.number = int(self._take())
        self._expect(";")
        return field

    def _map(self, message: descriptor_pb2.DescriptorProto, field: descriptor_pb2.FieldDescriptorProto) -> None:
        """Declare a map as protobuf does: a repeated message of key and value."""
        self._expect("<")
        key = self._take()
        self._expect(",")
        value = self._take()
        self._expect(">")
        field.name = self._take()
        entry = message.nested_type.add(name="".join(map(str.capitalize, field.name.split("_"))) + "Entry")
        entry.options.map_entry = True
        for number, (name, kind) in enumerate((("key", key), ("value", value)), start=1):
            _set_type(entry.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL), kind)
        field.label = _FIELD.LABEL_REPEATED
        _set_type(field, entry.name)

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto) -> None:
        enum.name = self._take()
        self._expect("{")
        while not self._accept("}"):
            name = self._take()
            self._expect("=")
            enum.value.add(name=name, number=int(self._take()))
            self._expect(";")

    def _service(self, service: descriptor_pb2.ServiceDescriptorProto) -> None:
        service.name = self._take()
        self._expect("{")
        while not self._accept("}"):
            self._expect("rpc")
            method = service.method.add(name=self._take())
            method.input_type, method.client_streaming = self._argument()
            self._expect("returns")
            method.output_type, method.server_streaming = self._argument()
            self._expect("{")
            self._expect("}")

    def _argument(self) -> tuple[str, bool]:
        self._expect("(")
        is_stream = self._accept("stream")
        name = self._take()
        self._expect(")")
        return name, is_stream

    def _statement(self, *tokens: str) -> None:
        for token in (*tokens, ";"):
            self._expect(token)

    def _take(self) -> str:
        token, self._next = self._next, next(self._tokens, "")
        return token

    def _accept(self, token: str) -> bool:
        if not self._next:
            raise ValueError(f"{self._file.name}: the file ends where {token!r} might follow")
        return self._next == token and bool(self._take())

    def _expect(self, token: str) -> None:
        came = self._take()
        if came != token:
            raise ValueError(f"{self._file.name}: {came!r}, expected {token!r}")


def _tokens(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{path.name}: {text[position]!r} at character {position}")
        position = match.end()
        if match[1]:
            yield match[1]


def _set_type(field: descriptor_pb2.FieldDescriptorProto, name: str) -> None:
    """Give a field its type; whether a name is a message or an enum is known only at the end of the file."""
    if name in _SCALARS:
        field.type = _SCALARS[name]
    else:
        field.type = _FIELD.TYPE_MESSAGE
        field.type_name = name


def _enum_names(file: descriptor_pb2.FileDescriptorProto) -> set[str]:
    nested = [message.enum_type for message in file.message_type]
    return {enum.name for enums in (file.enum_type, *nested) for enum in enums}


def _mark_enums(message: descriptor_pb2.DescriptorProto, enums: set[str]) -> None:
    for field in message.field:
        if field.type_name in enums:
            field.type = _FIELD.TYPE_ENUM
    for nested in message.nested_type:
        _mark_enums(nested, enums)
