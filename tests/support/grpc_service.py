"""A service behind its gRPC port under settings of a test's own, and calls of it that send bytes as they are."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc

from foldserve.service.app import create_app
from foldserve.service.keys import new_key
from foldserve.service.settings import Settings
from foldserve.service.v2.rpc.descriptors import INFERENCE
from tests.support.live import serve

INFER = f"/{INFERENCE.service}/ModelInfer"
STREAM = f"/{INFERENCE.service}/ModelStreamInfer"
Code = grpc.StatusCode


@contextlib.contextmanager
def running(folder: Path, **settings) -> Iterator[SimpleNamespace]:
    """A service under these settings, `operator` being the metadata with its key where it has keys."""
    key, line = new_key("operator", ["infer", "read"])
    if settings.pop("keys", False):
        settings["keys_file"] = folder / "keys"
        settings["keys_file"].write_text(f"{line}\n")
    app = create_app(Settings(models_dir=folder / "models", provider="cpu", buckets=(1, 8), grpc_port=0, **settings))
    with serve(app) as url, channel_to(app.state.grpc.port) as channel:
        yield SimpleNamespace(app=app, url=url, channel=channel, operator=(("x-api-key", key),))


def channel_to(port):
    """A channel that sends messages of any size."""
    return grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)])


def call(channel, data, route=INFER, **options):
    """Status, sentence and trailers of one call that sends these bytes."""
    try:
        _, done = channel.unary_unary(route, bytes, bytes).with_call(data, timeout=20, **options)
    except grpc.RpcError as err:
        done = err
    return done.code(), done.details(), dict(done.trailing_metadata() or ())
