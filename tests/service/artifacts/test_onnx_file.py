"""The nodes and tensors of a file against those that onnx's own classes hold."""

import onnx
import pytest
from google.protobuf.message import Message as OnnxMessage
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from foldserve.service.artifacts.onnx_file import find_all, opened
from foldserve.service.errors import ArtifactInvalid
from tests.support import artifacts


def nested_model() -> ModelProto:
    """Nodes and tensors everywhere that the format lets them stand."""
    tensor = lambda name: helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])  # noqa: E731
    node = helper.make_node("Constant", [], ["inner"], value=tensor("of an attribute"))
    sparse = helper.make_sparse_tensor(
        tensor("values"), helper.make_tensor("indices", TensorProto.INT64, [1], [0]), [2]
    )
    graph = helper.make_graph([node], "inner", [], [], [tensor("of a subgraph")], sparse_initializer=[sparse])
    model = artifacts.classifier_model()
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph))
    model.graph.node.append(helper.make_node("Many", [], [], tensors=[tensor("listed")], graphs=[graph, graph]))
    model.functions.add(name="f", domain="ours", node=[helper.make_node("Own", [], [], body=graph)])
    model.functions[0].attribute_proto.append(helper.make_attribute("default", graph))
    model.training_info.add(algorithm=graph, initialization=graph)
    return model


def all_of(kind: type[OnnxMessage], message: OnnxMessage) -> list[bytes]:
    """Every message of a class within another, by the fields of its descriptor."""
    parts = [message.SerializeToString()] if isinstance(message, kind) else []
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                parts += all_of(kind, inner)
    return parts


@pytest.mark.parametrize("kind", [NodeProto, TensorProto])
def test_every_node_and_tensor_is_found_wherever_it_stands(kind):
    """Subgraphs, functions, their defaults, sparse tensors and training information included."""
    model = nested_model()
    expected = all_of(kind, model)
    data = memoryview(model.SerializeToString())
    assert sorted(map(bytes, find_all(kind.DESCRIPTOR.name.removesuffix("Proto"), data))) == sorted(expected)
    assert len(expected) > 10


def test_graphs_that_nest_too_deep_are_refused():
    """A recursion that the file alone decides on would end the process."""
    graph = onnx.GraphProto()
    for _ in range(30):
        outer = onnx.GraphProto()
        outer.node.add(op_type="If").attribute.add(type=AttributeProto.GRAPH).g.CopyFrom(graph)
        graph = outer
    with pytest.raises(ValueError, match="deeper than 64"):
        list(find_all("Node", memoryview(ModelProto(graph=graph).SerializeToString())))


@pytest.mark.parametrize("data", [b"", b"\x3a\x05ab", b"\x0b"])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, data):
    """Empty, cut off, of unknown types."""
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactInvalid, match=r"model\.onnx is not an ONNX model"), opened(path) as view:
        list(find_all("Tensor", view))
