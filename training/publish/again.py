"""The proof of a published version once more: its golden answers, and the network that it was made from.

What `foldserve verify` does for networks of one's own. The recipe, the task and the labels are those of the version;
the network and the examples are given anew, since code that a folder names is never run.
"""

from typing import Any

import onnx

from foldserve.format import metadata
from foldserve.format.golden import Golden, read_golden
from foldserve.format.image_options import Normalisation
from foldserve.format.task import TENSORS, read_task
from foldserve.pictures.golden_files import with_pixels

from .. import golden
from ..errors import ConfigError, VerifyError
from ..served_session import RUNTIME_LEVELS, Session
from ..user_model.source import Source
from .opened import Opened, open_network
from .proof import CAP, check_served
from .reference import ask, reference_of
from .tasks import Meaning, scores_of
from .wanted import Wanted


def check_golden(model: bytes, stated: dict[str, str], section: Any, most: float = CAP) -> str:
    """Return how closely a version gives its golden answers, at every optimisation level.

    Args:
        model: content of model.onnx.
        stated: the graph's metadata.
        section: the manifest's `golden`.
        most: what a manifest may allow at most; one that lets everything pass would prove nothing.

    Raises:
        VerifyError: an answer is off by more than the manifest allows, or than any manifest may.
    """
    known, remark = _known(stated, section)
    limit = min(most, known.tolerance["cpu"])
    known = Golden(known.inputs, known.outputs, {"cpu": limit, "cuda": limit})
    worst = 0.0
    for level in RUNTIME_LEVELS.values():
        answers = Session(model, level).run(known.inputs)
        if unproved := sorted(answers.keys() - known.outputs.keys()):
            raise VerifyError(
                f"the manifest has golden answers of no output {unproved[0]!r}; publish the version again"
            )
        deviations = golden.check(known, answers)
        worst = max(worst, *deviations.values(), 0.0)
    files = f" ({remark})" if remark else ""
    return f"{known.rows} rows, off by {worst:.1e} of the largest value, limit {limit:.0e}{files}"


def _known(stated: dict[str, str], section: Any) -> tuple[Golden, str | None]:
    known, recipe = read_golden(section), metadata.read_image(stated)
    return (known, None) if recipe is None else with_pixels(known, recipe)


def check_against(model: bytes, stated: dict[str, str], manifest: dict[str, Any], source: Source, examples: Any) -> str:
    """Return how closely a version answers as the unfolded network of `source` does on `examples`.

    Raises:
        ConfigError: network or examples do not fit the version.
        VerifyError: it does not.
    """
    graph = onnx.ModelProto.FromString(model)
    names = [value.name for value in graph.graph.output]
    task, origin = read_task(stated, names), manifest.get("source") or {}
    wanted = Wanted(
        labels=metadata.read_labels(stated),
        image=_image(stated, origin),
        examples=examples,
        task=task.name,
        scores=origin.get("scores"),
        threshold=task.threshold,
        columns=task.columns,
        inputs=_inputs(graph) if metadata.read_image(stated) is None else (),
        outputs=names if task.name == TENSORS else (),
    )
    opened = open_network(source, wanted)
    _require_inputs(graph, opened)
    answers = ask(opened)
    scores = scores_of(answers.oracle, task.name, wanted.scores)
    is_probability = scores is not None and "probabilities" in names and "logits" not in names
    held = reference_of(answers, Meaning(task=task.name, scores=scores, is_probability=is_probability))
    feeds = opened.examples.take(answers.rows)
    deviations, _ = check_served(model, feeds, held.expected, held.unsure, held.tolerance)
    worst = max(deviations.values(), default=0.0)
    kind = "made inputs" if opened.examples.kind == "made" else opened.examples.kind
    return f"{len(answers.rows)} {kind}, off by {worst:.1e} of the largest value, limit {held.tolerance.cpu:.0e}"


def _image(stated: dict[str, str], origin: dict[str, Any]) -> Any:
    recipe, arithmetic = metadata.read_image(stated), origin.get("normalisation")
    if recipe is None:
        return None
    if arithmetic is None:
        raise ConfigError("the manifest does not say what the network expects of its pixels; publish it again")
    return recipe, Normalisation(tuple(arithmetic["mean"]), tuple(arithmetic["std"]), arithmetic["scale"])


def _inputs(graph: onnx.ModelProto) -> list[str]:
    specs = []
    for value in graph.graph.input:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        sizes = ",".join(str(dim.dim_value or 2) for dim in tensor.shape.dim)
        specs.append(f"{value.name}={dtype}:{sizes}")
    return specs


def _require_inputs(graph: onnx.ModelProto, opened: Opened) -> None:
    names = [value.name for value in graph.graph.input]
    if list(opened.names) != names:
        raise ConfigError(f"the network takes {', '.join(opened.names)}, the version {', '.join(names)}")
