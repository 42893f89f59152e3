"""Calls of the protocol over gRPC with nothing but the grpc library, which an environment may lack."""

from types import SimpleNamespace

from foldserve.service.v2.rpc.descriptors import HEALTH, INFERENCE
from tests.support import artifacts, v2_messages

MESSAGES = INFERENCE.messages
PIXELS = artifacts.images(3, seed=5)
CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "INT64": "int64_contents", "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip


def stubs(channel):
    """A function for each call that the service offers, by its name."""
    return SimpleNamespace(
        **{method.name: _stub(channel, proto, method) for proto in (INFERENCE, HEALTH) for method in proto.methods}
    )


def request(model="fashion", inputs=None, form="raw", **members):
    """A `ModelInferRequest`, raw or typed."""
    message = MESSAGES["ModelInferRequest"](model_name=model, **members)
    for name, array in (inputs or {"image": PIXELS}).items():
        datatype = v2_messages.DATATYPES[str(array.dtype)]
        entry = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if form == "raw":
            message.raw_input_contents.append(v2_messages.tensor_bytes(array))
        else:
            getattr(entry.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
    return message


def _stub(channel, proto, method):
    kind = ("stream" if method.is_client_streaming else "unary", "stream" if method.is_server_streaming else "unary")
    return getattr(channel, "_".join(kind))(
        f"/{proto.service}/{method.name}", method.request.SerializeToString, method.response.FromString
    )
