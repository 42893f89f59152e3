"""Judges manifests as a cluster would, without one: every field has to be known, of every kind.

Kinds of Kubernetes itself by `kubernetes-validate --strict`; KServe's by the schemas of its definitions, made strict;
those of KEDA and of Prometheus' operator by their types, as TypeScript's compiler reads them.
"""

import copy
import functools
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("CLUSTER_TOOLS", ROOT / ".venv-cluster"))
CRDS = Path(os.environ.get("KSERVE_CRDS", ROOT.parent / "shared/crds"))
KUBERNETES = "1.31"
OWN = {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "autoscaling/v2"}
TYPED = {
    "keda.sh/v1alpha1/ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
    "monitoring.coreos.com/v1/ServiceMonitor": (
        "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor"
    ),
}
# Maps whose keys are free.
FREE = {"labels", "annotations", "matchLabels", "data", "limits", "requests", "selector", "nodeSelector"}

METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object"},
        "annotations": {"type": "object"},
    },
}

Document = dict[str, Any]


def documents(text: str) -> list[Document]:
    """The resources in the output of a tool."""
    return [document for document in yaml.safe_load_all(text) if document]


def kustomized(folder: Path) -> list[Document]:
    """What `kubectl apply -k` would send."""
    return documents(_output(TOOLS / "kubectl", "kustomize", folder))


def templated(chart: Path, **values: Any) -> list[Document]:
    """What `helm install` would send."""
    given = [word for name, value in values.items() for word in ("--set-json", f"{name}={json.dumps(value)}")]
    return documents(_output(TOOLS / "helm", "template", "test", chart, *given))


def complaints(resources: Sequence[Document], folder: Path) -> list[str]:
    """What is wrong with each resource, an empty text where nothing is.

    Args:
        resources: to be judged.
        folder: for files; a new one.
    """
    found = ["" for _ in resources]
    own = {place: resource for place, resource in enumerate(resources) if resource.get("apiVersion") in OWN}
    typed = {place: resource for place, resource in enumerate(resources) if _kind(resource) in TYPED}
    for place, resource in enumerate(resources):
        if place not in own and place not in typed:
            found[place] = _by_definition(resource)
    for judged in (_by_kubernetes(own, folder), _by_types(typed, folder)):
        for place, complaint in judged.items():
            found[place] = complaint
    return found


def misspelt(resource: Document) -> Iterator[tuple[str, Document]]:
    """The same resource with one field misspelt, for each field that has a name of its own."""
    for path in _paths(resource):
        wrong = copy.deepcopy(resource)
        parent: Any = functools.reduce(lambda inner, key: inner[key], path[:-1], wrong)
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        yield "/".join(map(str, path)), wrong


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _paths(inner, (*path, place))
    elif isinstance(value, Mapping):
        is_free = bool(path) and (path[-1] in FREE or path[-2:] == ("triggers", path[-1]))
        is_trigger = len(path) >= 2 and path[-1] == "metadata" and "triggers" in path
        for key, inner in value.items():
            here = (*path, key)
            if not (is_free and not isinstance(path[-1], int)) and not is_trigger and here != ("apiVersion",):
                yield here
            yield from _paths(inner, here)


def _kind(resource: Document) -> str:
    return f"{resource.get('apiVersion')}/{resource.get('kind')}"


def _output(*command: Any) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _by_kubernetes(resources: Mapping[int, Document], folder: Path) -> dict[int, str]:
    """One run for all: a line for each resource says that it passed, or why not."""
    for place, resource in resources.items():
        (folder / f"{place}.yaml").write_text(yaml.safe_dump(resource))
    if not resources:
        return {}
    files = [str(folder / f"{place}.yaml") for place in resources]
    command = [str(TOOLS / "bin/kubernetes-validate"), "--strict", "-k", KUBERNETES, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    said: dict[int, str] = dict.fromkeys(resources, "nothing was said of it")
    for line in (done.stdout + done.stderr).splitlines():
        if match := re.match(rf"(\w+)\s+{re.escape(str(folder))}/(\d+)\.yaml (.*)", line):
            said[int(match[2])] = "" if match[1] == "INFO" and " passed " in f" {match[3]} " else line
    return said


def _by_types(resources: Mapping[int, Document], folder: Path) -> dict[int, str]:
    if not resources:
        return {}
    modules = TOOLS / "npm/node_modules"
    for place, resource in resources.items():
        module = TYPED[_kind(resource)]
        name = f"I{module.rsplit('/', 1)[1]}"
        head = f'import type {{ {name} }} from "{modules}/{module}";'
        (folder / f"t{place}.ts").write_text(f"{head}\nexport const resource: {name} = {json.dumps(resource)};\n")
    flags = ["--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "node"]
    command = [str(modules / ".bin/tsc"), *flags, *(f"t{place}.ts" for place in resources)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    wrong = {int(match[1]): match[0] for match in re.finditer(r"^t(\d+)\.ts\(.*", done.stdout, re.M)}
    assert bool(done.returncode) == bool(wrong), done.stdout + done.stderr
    return {place: wrong.get(place, "") for place in resources}


def _by_definition(resource: Document) -> str:
    schema = _definitions().get(_kind(resource))
    if schema is None:
        return f"{_kind(resource)} is a kind that nothing here knows"
    errors = jsonschema.Draft202012Validator(schema).iter_errors(resource)
    return "; ".join(error.message[:200] for error in errors)


@functools.cache
def _definitions() -> dict[str, Any]:
    """The strict schema of each kind of KServe; empty where its definitions are not at hand."""
    schemas = {}
    for file in CRDS.glob("*.yaml"):
        spec = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = METADATA
            schemas[f"{spec['group']}/{version['name']}/{spec['names']['kind']}"] = schema
    return schemas


def _strict(schema: Any) -> Any:
    """The same schema, without fields that it does not name."""
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    return strict
