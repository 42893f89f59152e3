"""deploy/kubernetes, deploy/helm and deploy/kserve, judged without a cluster; `make cluster-test` brings the tools."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from foldserve.service.live.declared import parse_declared
from foldserve.service.processes.workers import GRACE_SECONDS
from foldserve.service.settings import Settings
from tests.support.manifests import CRDS, ROOT, TOOLS, complaints, documents, kustomized, misspelt, templated

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/foldserve"
EVERYTHING: dict[str, Any] = {
    "serviceMonitor": True,
    "gpu": True,
    "models.pull.uri": "s3://bucket/models",
    "keysSecret": "keys",
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "deployment": {"lenet-bn": {"pin": 2, "labels": {"canary": 3}}, "a.b": {"labels": {"stable": 12345678}}},
}
NOTHING: dict[str, Any] = {"autoscaling.enabled": False, "networkPolicy": False, "grpc": False}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TOOLS / ".installed").exists(), reason="needs the tools of make cluster-test"),
]
needs_kserve = pytest.mark.skipif(not CRDS.exists(), reason=f"KServe's definitions are not at {CRDS} (KSERVE_CRDS)")


def pulled(folder: Path) -> list[dict[str, Any]]:
    """The CPU overlay with models from a bucket, as somebody would add the component."""
    base = Path("..") / Path(*[".."] * (len(folder.parts) - 2)) / str(DEPLOY / "kubernetes").lstrip("/")
    lines = {"resources": [str(base / "overlays/cpu")], "components": [str(base / "components/pull")]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    return kustomized(folder)


def built(name: str, folder: Path) -> list[dict[str, Any]]:
    """All resources of one way to deploy."""
    if name == "pull":
        return pulled(folder)
    if name in ("cpu", "gpu"):
        return kustomized(DEPLOY / "kubernetes/overlays" / name)
    if name == "kserve":
        return [found for file in sorted((DEPLOY / "kserve").glob("*.yaml")) for found in documents(file.read_text())]
    return templated(CHART, **{"helm": {}, "helm with everything": EVERYTHING, "helm with little": NOTHING}[name])


def typed(name: str) -> Any:
    """A way to deploy that has resources which are judged by their types."""
    has_types = (TOOLS / "npm/node_modules/typescript").exists()
    return pytest.param(name, marks=pytest.mark.skipif(not has_types, reason="needs npm, for types of resources"))


WAYS = ["cpu", "gpu", "pull", "helm", "helm with everything", "helm with little"]
KSERVE = pytest.param("kserve", marks=needs_kserve)
ALL = [*WAYS, KSERVE]
TYPED = [typed("gpu"), typed("helm with everything")]
JUDGED = ["cpu", "pull", "helm", "helm with little", *TYPED, KSERVE]


@pytest.mark.parametrize("name", JUDGED)
def test_every_field_is_known(name, tmp_path):
    """Of each resource, and no kind is one that nothing judges."""
    assert set(complaints(built(name, tmp_path), tmp_path)) == {""}


@pytest.mark.parametrize("name", [*TYPED, KSERVE])
def test_every_misspelt_field_is_found(name, tmp_path):
    """Each field of each resource, one at a time: none of the judges lets one through."""
    wrong = [(f"{one['kind']} {path}", bad) for one in built(name, tmp_path) for path, bad in misspelt(one)]
    found = complaints([resource for _, resource in wrong], tmp_path)
    assert len(found) > 80
    assert [path for (path, _), complaint in zip(wrong, found, strict=True) if not complaint] == []


def test_an_unknown_kind_is_found(tmp_path):
    """A misspelt one, and one that exists elsewhere."""
    kinds = [("apps/v1", "Deploymnet"), ("example.org/v1", "Widget"), ("keda.sh/v1alpha1", "ScaledObjects")]
    resources = [{"apiVersion": version, "kind": kind, "metadata": {"name": "x"}} for version, kind in kinds]
    assert all(complaints(resources, tmp_path))


def pods(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods that the resources make."""
    return [one["spec"]["template"]["spec"] for one in resources if one["kind"] == "Deployment"]


def seconds(environment: dict[str, str], name: str) -> float:
    default = Settings.model_fields[name].default
    return float(environment.get(f"FOLDSERVE_{name.upper()}", default))


@pytest.mark.parametrize("name", WAYS)
def test_the_grace_period_exceeds_what_the_end_takes(name, tmp_path):
    """preStop, leaving, draining and the supervisor's patience; the cluster kills what is there after it."""
    (pod,) = pods(built(name, tmp_path))
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    leave, drain = seconds(environment, "leave_seconds"), seconds(environment, "drain_seconds")
    assert leave == 5
    assert pod["terminationGracePeriodSeconds"] > before + leave + drain + GRACE_SECONDS
    assert pod["enableServiceLinks"] is False


def test_the_grace_period_of_the_chart_follows_its_settings():
    """Whoever drains for longer is not killed earlier."""
    (pod,) = pods(templated(CHART, settings={"LEAVE_SECONDS": "7.5", "DRAIN_SECONDS": "90"}))
    assert pod["terminationGracePeriodSeconds"] > 2 + 8 + 90 + GRACE_SECONDS


@needs_kserve
def test_the_grace_period_under_kserve_exceeds_too(tmp_path):
    """The runtime states the settings, the InferenceService the period."""
    resources = built("kserve", tmp_path)
    (service,) = [one for one in resources if one["kind"] == "InferenceService"]
    for runtime in (one for one in resources if one["kind"].endswith("ServingRuntime")):
        environment = {entry["name"]: entry["value"] for entry in runtime["spec"]["containers"][0]["env"]}
        end = seconds(environment, "leave_seconds") + seconds(environment, "drain_seconds") + GRACE_SECONDS
        assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] > end


@pytest.mark.parametrize("name", ALL)
def test_only_settings_that_exist_are_set(name, tmp_path, monkeypatch):
    """A container with an unknown variable would not start, nor one with a flag that is none."""
    resources = built(name, tmp_path)
    runtimes = [one["spec"] for one in resources if one["kind"].endswith("ServingRuntime")]
    for pod in [*pods(resources), *runtimes]:
        (container,) = pod["containers"]
        for entry in container["env"]:
            monkeypatch.setenv(entry["name"], entry["value"])
        flags = container.get("args", ["", "", "", ""])[4:]
        settings = Settings.from_command_line([flag.replace("{{.Name}}", "lenet-bn") for flag in flags])
        for port in container["ports"]:
            assert port["containerPort"] in (settings.port, settings.grpc_port)


@pytest.mark.parametrize("name", WAYS)
def test_pods_are_confined(name, tmp_path):
    """As the restricted profile of pod security asks, in init containers too; each has limits of memory."""
    (pod,) = pods(built(name, tmp_path))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        confined = container["securityContext"]
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", WAYS)
def test_selectors_choose_the_pods(name, tmp_path):
    """Service, budget, policy and monitor mean the pods of the Deployment; what is scaled is there."""
    resources = built(name, tmp_path)
    (deployment,) = [one for one in resources if one["kind"] == "Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    for one in resources:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            assert spec["selector"].items() <= labels
            service = one
        elif one["kind"] in ("PodDisruptionBudget", "Deployment"):
            assert spec["selector"]["matchLabels"].items() <= labels
        elif one["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels
        elif "scaleTargetRef" in spec:
            assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    for monitor in (one for one in resources if one["kind"] == "ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {end["port"] for end in monitor["spec"]["endpoints"]} <= ports


def test_what_scales_asks_for_metrics_that_exist(tmp_path):
    """The query of KEDA names metrics of the service."""
    (scaled,) = [one for one in built("gpu", tmp_path) if one["kind"] == "ScaledObject"]
    known = json.loads((ROOT / "tests/surface.json").read_text())["metrics"]
    named = re.findall(r"foldserve_\w+", scaled["spec"]["triggers"][0]["metadata"]["query"])
    assert {re.sub(r"_(sum|count)$", "", name) for name in named} <= known.keys()
    assert named


@pytest.mark.parametrize("name", WAYS)
def test_the_service_reads_what_the_config_map_declares(name, tmp_path):
    """As the service itself reads it; the chart writes what its values say."""
    (held,) = [one for one in built(name, tmp_path) if one["kind"] == "ConfigMap"]
    text = held["data"]["deployment.toml"]
    assert tomllib.loads(text) is not None
    declared = {"lenet-bn": {"latest": 2, "canary": 3}, "a.b": {"stable": 12345678}}
    assert parse_declared(text) == (declared if name == "helm with everything" else {})


@pytest.mark.parametrize(
    "values", [{"replcias": 1}, {"models": {"pul": {}}}, {"deployment": {"m": {"pn": 1}}}, {"settings": {"WORKERS": 2}}]
)
def test_misspelt_values_of_the_chart_are_refused(values):
    """By its schema, before anything is sent."""
    with pytest.raises(AssertionError, match=r"values don't meet the specifications|not allowed|Invalid type"):
        templated(CHART, **values)
