"""The committed descriptor set against the .proto files that it was compiled from."""

import re
import subprocess
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool

from foldserve.service.v2.rpc import descriptors

ROOT = Path(__file__).parents[4]
FOLDER = ROOT / "service/v2/rpc"


def read(path: Path) -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


def test_the_set_is_what_the_compiler_makes_of_the_texts(tmp_path):
    """A change of a .proto file without `make protos` is noticed."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", f"--descriptor_set_out={tmp_path / 'set'}"]
    subprocess.run([*command, *(path.name for path in sorted(FOLDER.glob("*.proto")))], check=True)
    compiled = {file.name: file for file in read(tmp_path / "set").file}
    assert compiled == {file.name: file for file in read(FOLDER / "protos.binpb").file}
    assert len(compiled) == 2


def test_make_compiles_every_file():
    """The command in the Makefile names all of them and writes what is loaded."""
    recipe = re.search(r"^protos:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert {path.name for path in FOLDER.glob("*.proto")} == set(re.findall(r"\w+\.proto\b", recipe[1]))
    assert f"--descriptor_set_out={(FOLDER / 'protos.binpb').relative_to(ROOT)}" in recipe[1]


def test_services_are_those_of_the_texts():
    """Names, arguments and streams of every call, by a reading of the text that knows no grammar."""
    for name, proto in (("inference.proto", descriptors.INFERENCE), ("health.proto", descriptors.HEALTH)):
        calls = re.findall(r"rpc (\w+)\((stream )?(\w+)\)\s+returns\s+\((stream )?(\w+)\)", (FOLDER / name).read_text())
        assert [
            (call.name, call.is_client_streaming, call.request, call.is_server_streaming, call.response)
            for call in proto.methods
        ] == [
            (call, bool(sends), proto.messages[takes], bool(gets), proto.messages[gives])
            for call, sends, takes, gets, gives in calls
        ]
        assert calls


def test_the_types_stay_out_of_the_default_pool():
    """A client library that declares the same package can be imported into the same process."""
    default = descriptor_pool.Default()
    for proto in (descriptors.INFERENCE, descriptors.HEALTH):
        for message in proto.messages.values():
            assert message.DESCRIPTOR.file.pool is not default
