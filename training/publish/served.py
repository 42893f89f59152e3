"""An opened network -> the served graph and its proof: folded, exported, completed, and compared with the oracle.

The second half of publishing, and what `verify` repeats. It writes nothing.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from foldserve.format.golden import Golden
from foldserve.format.metadata import FIRST, FORMAT_KEY, LABELS, REVISION, WEIGHTS, canonical_json, describe_image
from foldserve.format.task import CLASSIFY, MULTILABEL, Task

from .. import provenance
from ..errors import ConfigError, VerifyError
from ..fold.onnx.exporter import require_valid
from ..fold.report import Report
from ..fold.tiled import give_memory_back
from ..model_file import set_metadata, to_bytes, weights_digest
from .golden_pictures import with_files
from .golden_rows import choose
from .network import Array, Feeds, OnnxNetwork, TorchNetwork
from .network_graph import NetworkGraph, graph_of_module, graph_of_onnx
from .opened import Opened
from .own_classes import check_own_classes
from .proof import Proof, check_served, golden_of
from .reference import Answers, Reference, ask, reference_of
from .served_graph import add_preprocessing, add_task, producer_of, rename_inputs
from .tasks import Meaning, are_probabilities, scores_of
from .wanted import checked_labels

_FOLD_ROWS = 2  # examples that the fold proves each norm on


@dataclass(frozen=True, kw_only=True)
class Served:
    """A graph that was proved.

    Attributes:
        model: content of model.onnx.
        golden: answers for the manifest.
        golden_indices: which examples they are of.
        proof: what was measured.
        report: of the fold; None where nothing was folded.
        meaning: of the network's outputs.
        reference: what the graph was held to.
        answers: what it gave, in the default form of the runtime.
        notes: for people.
    """

    model: bytes
    golden: Golden
    golden_indices: Array
    proof: Proof
    report: Report | None
    meaning: Meaning
    reference: Reference
    answers: Mapping[str, Array]
    notes: tuple[str, ...]


def serve(opened: Opened) -> Served:
    """Return the served graph of a network, proved on its examples.

    Raises:
        ConfigError: task, labels or recipe do not fit the network.
        ExportError: the network cannot be exported.
        VerifyError: the graph does not answer as the unfolded network, or nothing that it gives can be held to.
    """
    answers = ask(opened)
    scores = scores_of(answers.oracle, opened.wanted.chosen_task, opened.wanted.scores)
    _check_labels(opened, answers, scores)
    if scores is not None and opened.wanted.chosen_task == CLASSIFY:
        check_own_classes(answers, scores, opened.classes)
    graph = _network_graph(opened)
    meaning = _meaning(opened, answers, graph, scores)
    reference = reference_of(answers, meaning)
    model = _completed(opened, graph, reference.expected, meaning)
    report, notes = graph.report, (*graph.notes, *_notes(opened, answers, meaning))
    del graph  # its weights are in `model` as well
    gc.collect()  # an exporter's graph holds itself, and its weights with it
    give_memory_back()
    return _proved(opened, model, reference, meaning, report, notes)


def _proved(
    opened: Opened,
    model: bytes,
    reference: Reference,
    meaning: Meaning,
    report: Report | None,
    notes: tuple[str, ...],
) -> Served:
    feeds = opened.examples.take(reference.rows)
    deviations, got = check_served(model, feeds, reference.expected, reference.unsure, reference.tolerance)
    golden, rows, golden_notes = _golden(opened, model, reference, meaning, feeds, got)
    return Served(
        model=model,
        golden=golden,
        golden_indices=rows,
        proof=_proof(opened, reference, deviations, got),
        report=report,
        meaning=meaning,
        reference=reference,
        answers=got,
        notes=(*notes, *golden_notes),
    )


def _proof(opened: Opened, reference: Reference, deviations: Mapping[str, float], got: Mapping[str, Array]) -> Proof:
    return Proof(
        oracle=opened.network.oracle_kind,
        examples=opened.examples.kind,
        rows=len(reference.rows),
        deviations=deviations,
        probability_difference=_difference(got, reference.expected),
        agreement=_agreement(got, reference.expected),
        undecided=int(reference.unsure.sum()),
        tolerance=reference.tolerance,
    )


def _golden(
    opened: Opened, model: bytes, reference: Reference, meaning: Meaning, feeds: Feeds, got: Mapping[str, Array]
) -> tuple[Golden, Array, tuple[str, ...]]:
    """Return the golden answers, the examples that they are of, and a note where none of them has a clear class."""
    examples, expected = opened.examples, reference.expected
    chosen, notes = choose(expected, reference.unsure, {} if examples.files is not None else feeds, reference.rows)
    if notes:
        expected = {name: value for name, value in expected.items() if value.dtype.kind == "f"}
    if not expected:
        raise VerifyError(
            "on no example does the unfolded network give the same whole numbers in float32 and in float64, and it "
            "gives nothing else: nothing is proved; let it return the scores too, before they are rounded or compared"
        )
    golden, rows = golden_of(feeds, expected, got, chosen, reference.tolerance), reference.rows[chosen]
    if opened.images is not None:
        golden = with_files(golden, rows, examples, opened.images, opened.network, meaning, model, reference.tolerance)
    return golden, rows, notes


def _meaning(opened: Opened, answers: Answers, graph: NetworkGraph, scores: str | None) -> Meaning:
    task = opened.wanted.chosen_task
    own = _own_name(opened, graph, scores)
    producer = "" if own is None else producer_of(graph.model, own)
    is_probability = scores is not None and are_probabilities(answers.oracle[scores], task, producer)
    return Meaning(task=task, scores=scores, is_probability=is_probability)


def _network_graph(opened: Opened) -> NetworkGraph:
    network, images = opened.network, opened.images
    if isinstance(network, TorchNetwork):
        wanted = None if images is None or images.recipe.layout != "CHW" else images.normalisation
        return graph_of_module(network, _fold_example(opened, network), wanted)
    assert isinstance(network, OnnxNetwork)
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    shapes = {name: value.shape for name, value in opened.examples.take(opened.examples.checked[:2]).items()}
    if network.fixed_rows is not None:
        shapes = {name: (network.fixed_rows, *shape[1:]) for name, shape in shapes.items()}
    if images is not None:
        add_preprocessing(model, images.recipe, _factors(opened))
    return graph_of_onnx(network, model, shapes)


def _fold_example(opened: Opened, network: TorchNetwork) -> tuple[Tensor, ...]:
    size = network.fixed_rows
    rows = opened.examples.checked[: size or _FOLD_ROWS]
    rows = np.resize(rows, size or max(2, len(rows)))  # one example alone would be taken for a fixed batch
    feeds = opened.examples.take_original(rows)
    pairs = zip(network.inputs, network.example, strict=True)
    return tuple(torch.from_numpy(np.ascontiguousarray(feeds[name])).to(like.dtype) for name, like in pairs)


def _factors(opened: Opened) -> Any:
    assert opened.images is not None
    wanted = opened.images.normalisation
    return None if wanted.is_identity else wanted.factors()


def _own_name(opened: Opened, graph: NetworkGraph, scores: str | None) -> str | None:
    """Return what the graph calls the output that the task is about."""
    if scores is None:
        return None
    return str(graph.model.graph.output[opened.network.outputs.index(scores)].name)


def _completed(opened: Opened, graph: NetworkGraph, expected: Mapping[str, Array], meaning: Meaning) -> bytes:
    model, images, own = graph.model, opened.images, _own_name(opened, graph, meaning.scores)
    if isinstance(opened.network, TorchNetwork) and images is not None:
        add_preprocessing(model, images.recipe, None if graph.takes_pixels else _factors(opened))
    elif images is None:
        rename_inputs(model, dict(zip((v.name for v in model.graph.input), opened.names, strict=False)))
    names = {
        str(value.name): name
        for value, name in zip(model.graph.output, opened.network.outputs, strict=True)
        if name in expected
    }
    columns = 0 if own is None else next(iter(expected.values())).shape[1]
    add_task(model, meaning.task, own, meaning.is_probability, columns, names)
    set_metadata(model, {**_metadata(opened), WEIGHTS: weights_digest(model)})
    model.producer_name, model.producer_version, model.domain = "foldserve", "", ""
    require_valid(model)
    return to_bytes(model)


def _metadata(opened: Opened) -> dict[str, str]:
    wanted = opened.wanted
    columns = None if wanted.columns is None else tuple(wanted.columns)
    entries = {FORMAT_KEY: FIRST, REVISION: provenance.revision()}
    if opened.images is not None:
        entries |= describe_image(opened.images.recipe)
    if wanted.labels is not None:
        entries[LABELS] = canonical_json(list(wanted.labels))
    return entries | Task(wanted.chosen_task, wanted.threshold, columns).as_metadata()


def _check_labels(opened: Opened, answers: Answers, scores: str | None) -> None:
    labels = opened.wanted.labels
    if labels is None or scores is None:
        return
    checked_labels(labels)
    outputs = answers.oracle[scores].reshape(len(answers.rows), -1).shape[1]
    if len(labels) != outputs:
        raise ConfigError(
            f"{len(labels)} labels for {outputs} outputs ({scores!r}); expected one label for each, in the order of "
            "the classes: is a line missing, or is the background a class?"
        )


def _notes(opened: Opened, answers: Answers, meaning: Meaning) -> tuple[str, ...]:
    notes, scores = [], meaning.scores
    if meaning.is_probability:
        notes.append(f"output {scores!r} holds probabilities already; nothing is added to it")
    if scores is not None and len(answers.oracle) > 1:
        others = ", ".join(name for name in answers.oracle if name != scores)
        notes.append(f"the task is about output {scores!r}; not served: {others}")
    if opened.classes is not None and scores is not None and not meaning.is_probability:
        notes.append(
            f"{scores!r} holds no probabilities: a softmax is added, which the classifier itself does not have"
        )
    dropped = [name for name, value in answers.oracle.items() if value.dtype.kind not in "fiub"]
    if scores is None and dropped:
        notes.append(f"outputs {', '.join(dropped)} hold no numbers and are not served")
    if opened.wanted.chosen_task in (CLASSIFY, MULTILABEL) and opened.wanted.labels is None:
        notes.append("no labels: classes are numbers in the answers")
    return tuple(notes)


def _difference(got: Mapping[str, Array], expected: Mapping[str, Array]) -> float | None:
    if "probabilities" not in expected:
        return None
    return float(np.abs(got["probabilities"] - expected["probabilities"]).max())


def _agreement(got: Mapping[str, Array], expected: Mapping[str, Array]) -> float | None:
    if "class_id" not in expected:
        return None
    return float((got["class_id"] == expected["class_id"]).mean())
