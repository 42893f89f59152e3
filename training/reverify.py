"""Repeats later, on a published version, what was proved when it was made; says what it could not repeat, and why.

The command line's `verify`. It trusts nothing but the bytes before it: digests first, then the place, the graph, its
answers, its accuracy on the real test images and, where the run's weights are given, the whole chain from the unfolded
network.
"""

import functools
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from foldserve.format import metadata
from foldserve.format.errors import FormatError
from foldserve.format.manifest import MANIFEST_FILE, MODEL_FILE

from . import artifact, golden, model_file
from .config import NETWORKS
from .dataset import Dataset
from .errors import ArtifactError, ExportError, TrainingError, VerifyError
from .fold.onnx.exporter import require_valid
from .parity import TOLERANCE, check_parity, run_model
from .pipeline import PROOF_ROWS, algebra_of, fold_network
from .place import check_place, is_no_place
from .publish import again
from .publish.proof import CAP
from .user_model.source import Source
from .weights import Weights, read_weights


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "FAILED"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Check:
    """One check: what, how it ended, and the figures or the reason."""

    what: str
    outcome: Outcome
    detail: str

    def __str__(self) -> str:
        return f"{self.outcome:<11}  {self.what:<16}  {self.detail}"

    def as_dict(self) -> dict[str, str]:
        """Return it for programs; `outcome` is passed, failed or not_checked."""
        return {"what": self.what, "outcome": self.outcome.name.lower(), "detail": self.detail}


@dataclass(frozen=True)
class Version:
    """A published version as read from its folder."""

    model: bytes
    graph: onnx.ModelProto
    manifest: dict[str, Any]

    @property
    def metadata(self) -> dict[str, str]:
        """The graph's `metadata_props`."""
        return {entry.key: entry.value for entry in self.graph.metadata_props}

    @property
    def is_trained_here(self) -> bool:
        """True for what `foldserve train` made: it names its data."""
        return metadata.DATA in self.metadata


Obstacle = Callable[[], str | None]  # returns why a part cannot be checked, None when it can
Parts = dict[str, tuple[Obstacle, Callable[[], str]]]  # both read what the folder says, which may be anything
_GARBLED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def version_folder(path: Path) -> Path:
    """Return the version folder that `path` means: itself, the one that model.onnx lies in, or a model's newest.

    Raises:
        ArtifactError: it is none of them.
    """
    folder = path.parent if path.name == MODEL_FILE else path
    if (folder / MANIFEST_FILE).is_file():
        return folder
    if folder.is_dir() and (numbers := artifact.versions(folder)):
        return folder / str(numbers[-1])
    raise ArtifactError(
        f"{path}: no {MANIFEST_FILE} there; expected a version folder such as models/lenet-bn/1, the {MODEL_FILE} in "
        "one, or a model's folder such as models/lenet-bn, which means its newest version"
    )


def reverify(
    path: Path,
    load_dataset: Callable[[], Dataset],
    weights: Path | None = None,
    on_check: Callable[[Check], None] = lambda _: None,
    *,
    network: str | None = None,
    open_original: Callable[[], Source] | None = None,
    examples: Any = None,
    during: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> list[Check]:
    """Return one `Check` for each part of the proof, calling `on_check` as each ends; a failure does not end the rest.

    Args:
        path: a version folder, as `version_folder` returns it.
        load_dataset: gives the real data; a TrainingError from it means that it is missing.
        weights: the run's model.safetensors, for the whole chain.
        on_check: gets each check as it ends.
        network: the factory of a network of the user's. It is run only when it is named here: a file that named it
            would have its reader run whatever it says.
        open_original: gives the network that a version of one's own was made from; None: it was not given.
        examples: for that network, as `publish` takes them.
        during: is entered around each check, with its name.

    Raises:
        ArtifactError: the version cannot be read, or its digests are wrong: then there is nothing to check.
    """
    model, manifest = artifact.read(path)
    version = Version(model, _parsed(model), manifest)
    parts: Parts = {
        "digests": (
            _nothing,
            lambda: f"{MODEL_FILE}, {len(model)} bytes, is the file that the manifest was written for",
        ),
        "place": (lambda: is_no_place(path, manifest), lambda: check_place(path, manifest)),
        "graph": (_nothing, lambda: _check_graph(version)),
    }
    if version.is_trained_here:
        parts |= _trained_parts(version, load_dataset, weights, network)
    else:
        parts |= _brought_parts(version, open_original, examples)
    checks = []
    for what, (obstacle, check) in parts.items():
        with during(what):
            checks.append(_outcome(what, obstacle, check))
        on_check(checks[-1])
    return checks


def _obstacle(version: Version, weights: Path | None, network: str | None) -> str | None:
    """Return why the whole chain cannot be checked, None when it can."""
    if weights is None:
        return "the unfolded weights were not given; add --weights RUN/model.safetensors"
    stated = _stated_network(version) or "lenet-bn"
    if stated not in NETWORKS and stated != network:
        return f"the network was made by {stated}, which would run; add --network {stated} if you trust it"
    return None


def _trained_parts(
    version: Version, load_dataset: Callable[[], Dataset], weights: Path | None, network: str | None
) -> Parts:
    """Return what is checked of a version that `foldserve train` made: its data and its run are known."""
    found = functools.cache(lambda: _dataset_for(version, load_dataset))
    return {
        "golden answers": (_nothing, lambda: _check_golden(version, golden.TOLERANCE["cpu"])),
        "test accuracy": (lambda: found()[1], lambda: _check_accuracy(version, found()[0])),
        "whole chain": (
            lambda: _obstacle(version, weights, network) or found()[1],
            lambda: _check_chain(version, found()[0], weights),
        ),
    }


def _nothing() -> None:
    """Stand in the way of no check."""


def _stated_network(version: Version) -> str | None:
    """Return the network that the graph's recipe names; None: it names none.

    Raises:
        ArtifactError: the recipe is none.
    """
    text = version.metadata.get(metadata.RECIPE, "{}")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("network", ""), str):
        raise ArtifactError(f"the graph's metadata {metadata.RECIPE} is {text[:80]!r}, expected the recipe as JSON")
    return recipe.get("network")


def _brought_parts(version: Version, open_original: Callable[[], Source] | None, examples: Any) -> Parts:
    """Return what is checked of a version that `foldserve publish` made: its network is brought along again."""
    no_source = None if open_original else "the unfolded network was not given; add --source and --examples"

    def against_original() -> str:
        assert open_original is not None
        return again.check_against(version.model, version.metadata, version.manifest, open_original(), examples)

    return {
        "golden answers": (_nothing, lambda: _check_golden(version)),
        "unfolded network": (lambda: no_source, against_original),
    }


def _outcome(what: str, obstacle: Obstacle, check: Callable[[], str]) -> Check:
    try:
        if (reason := obstacle()) is not None:
            return Check(what, Outcome.NOT_CHECKED, reason)
        return Check(what, Outcome.PASSED, check())
    except (TrainingError, FormatError) as err:
        return Check(what, Outcome.FAILED, str(err))
    except _GARBLED as err:
        return Check(what, Outcome.FAILED, f"the manifest or the metadata lacks or garbles an entry: {err!r}")


def _parsed(model: bytes) -> onnx.ModelProto:
    try:
        graph: onnx.ModelProto = onnx.ModelProto.FromString(model)
    except Exception as err:  # protobuf's DecodeError has no public home common to its versions
        raise ArtifactError(f"{MODEL_FILE} is no ONNX file ({err}), although its digest is right") from err
    return graph


def _dataset_for(version: Version, load_dataset: Callable[[], Dataset]) -> tuple[Dataset | None, str | None]:
    """Return the data that the model was made from, or None and why it is missing."""
    try:
        dataset = load_dataset()
    except TrainingError as err:
        return None, f"the test images are missing: {err}"
    if metadata.canonical_json(dataset.digests) != version.metadata.get(metadata.DATA):
        return None, f"the data from {dataset.source} is not what the model was trained on"
    return dataset, None


def _check_graph(version: Version) -> str:
    if version.is_trained_here:
        model_file.check_graph(version.graph)
    else:
        require_valid(version.graph)  # norms may stay in a network that was brought, and are proved with it
    digest, stated = model_file.weights_digest(version.graph), version.metadata.get(metadata.WEIGHTS)
    if digest != stated:
        raise ExportError(f"the weights' digest is {digest}, the graph's metadata says {stated}")
    norms = sum(node.op_type == "BatchNormalization" for node in version.graph.graph.node)
    kept = f"{norms} of them norms" if norms else "no norm"
    return f"valid ONNX, {len(version.graph.graph.node)} nodes, {kept}, weights {digest[:12]}"


def _check_golden(version: Version, most: float = CAP) -> str:
    return again.check_golden(version.model, version.metadata, version.manifest["golden"], most)


def _check_accuracy(version: Version, dataset: Dataset | None) -> str:
    assert dataset is not None
    outputs = run_model(version.model, dataset.test_images)
    logits = outputs["logits"].astype(np.float64)
    undecided = int((golden.margins(logits) < 2 * TOLERANCE * np.abs(logits).max()).sum())
    correct = int((outputs["class_id"][:, 0] == dataset.test_labels).sum())
    stated = version.manifest["accuracy"]
    if abs(correct - stated["correct"]) > undecided or stated["images"] != len(logits):
        raise VerifyError(
            f"{correct} of {len(logits)} test images are right, the manifest says {stated['correct']} of "
            f"{stated['images']}, and only {undecided} are near a tie"
        )
    return f"{correct} of {len(logits)} test images, as the manifest says"


def _check_chain(version: Version, dataset: Dataset | None, path: Path | None) -> str:
    assert dataset is not None
    assert path is not None
    weights = read_weights(path)
    stated = _stated_network(version) or weights.recipe.network
    if weights.recipe.network != stated:
        raise VerifyError(f"{path} is of the network {weights.recipe.network}, the version of {stated}")
    network = weights.network(version.metadata[metadata.STATISTICS])
    folded, report = fold_network(network, dataset.test_images[:PROOF_ROWS])
    _check_same_weights(version, folded.state_dict(), weights, path)
    parity = check_parity(network, folded, version.model, dataset, algebra=algebra_of(report))
    return (
        f"folded anew, bit for bit; {parity.served.agreeing} of {parity.images} classes as in float64, "
        f"logits off by {parity.served.max_error:.1e} of the largest"
    )


def _check_same_weights(version: Version, folded: dict[str, Any], weights: Weights, path: Path) -> None:
    published = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in version.graph.graph.initializer}
    for name, tensor in folded.items():
        if name not in published or published[name].tobytes() != tensor.numpy().tobytes():
            raise VerifyError(
                f"{path} (seed {weights.recipe.seed}) does not fold to the model's {name!r}; other weights"
            )
