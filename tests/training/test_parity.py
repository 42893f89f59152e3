"""Verify: a right fold passes on real images at float32's own error, and every wrong one is caught."""

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from foldserve.training.dataset import FashionMNIST, default_sources, load_from
from foldserve.training.errors import DatasetError, VerifyError
from foldserve.training.model_file import export, to_bytes
from foldserve.training.parity import Parity, check_parity, oracle_logits, run_model
from tests.support.hand_fold import fold_by_hand, trained_like_lenet

ALGEBRA = {"norm1": 1e-15}


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """600 real test images where Fashion-MNIST lies on this machine, else made-up ones with as many grey levels."""
    try:
        return load_from(default_sources(download=False)).test_images[:600]
    except DatasetError:
        return np.random.default_rng(0).integers(0, 256, (600, 1, 28, 28), dtype=np.uint8)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return trained_like_lenet()


@pytest.fixture(scope="module")
def folded(network: nn.Sequential) -> nn.Sequential:
    return fold_by_hand(network)


@pytest.fixture(scope="module")
def model(folded: nn.Sequential) -> onnx.ModelProto:
    return export(folded, metadata={})


@pytest.fixture
def parity_of(network, folded, images) -> Callable[..., Parity]:  # type: ignore[no-untyped-def]
    """Return check_parity with everything right but what the test replaces."""

    def check_with(model: onnx.ModelProto, folded: nn.Module = folded, algebra: dict = ALGEBRA) -> Parity:
        labels = np.zeros(len(images), np.int64)
        dataset = FashionMNIST(images[:0], labels[:0], images, labels, source="the test")
        return check_parity(network, folded, to_bytes(model), dataset, algebra=algebra)

    return check_with


def changed(model: onnx.ModelProto, name: str, change: Callable[[NDArray], NDArray]) -> onnx.ModelProto:
    """Return a copy of the graph with one initializer changed."""
    copied = copy.deepcopy(model)
    tensor = next(tensor for tensor in copied.graph.initializer if tensor.name == name)
    array = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return copied


def test_all_forms_of_a_right_fold_agree(parity_of, model, images) -> None:
    """Unfolded, folded and both levels of the runtime name the oracle's class on every image, at 1e-6 or so."""
    parity = parity_of(model)
    assert len(parity.forms) == 4
    for form in parity.forms:
        assert form.agreeing + form.undecided == parity.images == len(images)
        assert 0 < form.mean_error <= form.max_error < 1e-5


def test_the_oracle_is_the_unfolded_network_in_double_precision(network, images) -> None:
    """Written out with PyTorch alone: float64 pixels over 255 through a float64 copy; the network stays float32."""
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(torch.from_numpy(images[:7]).double() / 255).numpy()
    np.testing.assert_array_equal(oracle_logits(network, images[:7]), expected)
    assert next(network.parameters()).dtype == torch.float32


def test_correct_counts_the_true_class(parity_of, model, network, images) -> None:
    """The accuracy in the manifest is that of the served graph against the labels."""
    classes = run_model(to_bytes(model), images)["class_id"][:, 0]
    parity = parity_of(model)
    assert parity.served.correct == int((classes == 0).sum())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("conv1.weight", lambda w: w[[1, 0, 2, 3, 4, 5]]),
        ("conv1.weight", lambda w: np.roll(w, 1, axis=3)),
        ("conv1.weight", lambda w: w * np.float32(1 + 1e-3)),
        ("conv2.bias", lambda b: b * np.array([-1.0] + [1.0] * 15, np.float32)),
        ("dense1.weight", lambda w: w[:, ::-1]),
        ("dense2.bias", np.zeros_like),
        ("dense3.bias", lambda b: b + np.array([np.nan] + [0.0] * 9, np.float32)),
    ],
    ids=[
        "two channels swapped",
        "a pixel's shift",
        "a thousandth",
        "one sign",
        "flattened backwards",
        "no bias",
        "NaN",
    ],
)
def test_a_wrong_parameter_is_caught(parity_of, model, name, change) -> None:
    """Whatever a wrong fold could have done to one tensor is far outside the tolerance."""
    with pytest.raises(VerifyError, match="onnxruntime"):
        parity_of(changed(model, name, change))


def test_a_wrong_class_output_is_caught_though_the_logits_are_right(parity_of, model) -> None:
    """The class that is served is judged as it is served, not computed anew from the logits."""
    copied = copy.deepcopy(model)
    node = next(node for node in copied.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    with pytest.raises(VerifyError, match="another class on"):
        parity_of(copied)


def test_wrong_probabilities_are_caught_though_the_logits_are_right(parity_of, model) -> None:
    """A softmax over the wrong axis gives plausible numbers."""
    copied = copy.deepcopy(model)
    node = next(node for node in copied.graph.node if node.op_type == "Softmax")
    node.attribute[0].i = 0
    with pytest.raises(VerifyError, match="probabilities off"):
        parity_of(copied)


def test_a_wrong_folded_module_is_caught_though_the_graph_is_right(parity_of, model, folded) -> None:
    """Both ends are judged by the oracle, not by each other."""
    wrong = copy.deepcopy(folded)
    wrong.conv2.bias.data += 0.01
    with pytest.raises(VerifyError, match="torch, folded"):
        parity_of(model, folded=wrong)


@pytest.mark.parametrize(("error", "message"), [(1e-10, "fold of norm3: algebra off"), (None, "without a proof")])
def test_a_fold_whose_algebra_is_not_proved_is_refused(parity_of, model, error, message) -> None:
    """The float64 proof of each site is part of what is published."""
    with pytest.raises(VerifyError, match=message):
        parity_of(model, algebra={"norm1": 1e-15, "norm3": error})


def test_a_model_that_the_runtime_refuses_is_one_sentence(parity_of, model) -> None:
    """Whatever onnxruntime says arrives as one line of ours."""
    copied = copy.deepcopy(model)
    copied.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(VerifyError, match="onnxruntime cannot load the graph") as caught:
        parity_of(copied)
    assert "\n" not in str(caught.value)
