"""docker-compose.yml as compose reads it: settings that pass, limits, and time enough to end.

Whoever adds a setting writes the list of those that pass anew with `python -m tests.deploy.test_compose`.
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from foldserve.service.processes.workers import GRACE_SECONDS
from foldserve.service.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
GIVEN = {"FOLDSERVE_WORKERS": "2", "FOLDSERVE_HOST": "::", "MEMORY_LIMIT": "2g", "CPU_LIMIT": "1.5"}
TO_UNCOMMENT = {"FOLDSERVE_GRPC_PORT", "FOLDSERVE_KEYS_FILE"}


@functools.cache
def read(**environment: str) -> dict[str, Any]:
    """What compose makes of the file with all profiles; version 1 and 2 both print it."""
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose")
    clean = {name: value for name, value in os.environ.items() if not name.startswith((ENV_PREFIX, "COMPOSE_"))}
    command = ["docker-compose", "-f", str(FILE), "--project-directory", str(ROOT), "config"]
    everything = clean | {"COMPOSE_PROFILES": "cpu,gpu,monitoring"} | environment
    done = subprocess.run(command, env=everything, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]


def stated_by_the_image() -> set[str]:
    """Settings that the Dockerfile gives a value of its own; a name without a value would take them away."""
    return set(re.findall(r"\b(FOLDSERVE_\w+)=", (ROOT / "Dockerfile").read_text()))


def that_pass() -> list[str]:
    """The variables of all settings that compose passes on."""
    settings = [f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields]
    return [name for name in settings if name not in stated_by_the_image() | TO_UNCOMMENT]


def test_every_setting_passes_but_those_that_the_image_states():
    """A new setting is not forgotten, and none that would break the container is let through."""
    service = yaml.safe_load(FILE.read_text())["x-service"]
    passed = [entry for entry in service["environment"] if "=" not in entry]
    assert {"FOLDSERVE_HOST", "FOLDSERVE_PORT", "FOLDSERVE_MODELS_DIR", "FOLDSERVE_STATE_DIR"} < stated_by_the_image()
    assert passed == that_pass()
    commented = set(re.findall(r"# - (FOLDSERVE_\w+)=", FILE.read_text()))
    assert commented == TO_UNCOMMENT


def test_a_setting_of_the_shell_reaches_the_container():
    """One that is set is passed on, one that is not is left out rather than empty."""
    for profile in ("cpu", "gpu"):
        environment = read(**GIVEN)[profile]["environment"]
        assert environment["FOLDSERVE_WORKERS"] == "2"
        assert environment["FOLDSERVE_THREADS"] is None
        assert "FOLDSERVE_HOST" not in environment


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_limits_are_those_of_the_shell(profile):
    """Memory and cores, for both images, in the two members that every compose reads."""
    limited = read(**GIVEN)[profile]
    assert (str(limited["mem_limit"]), float(limited["cpus"])) in [("2g", 1.5), (str(2 << 30), 1.5)]
    usual = read()[profile]
    assert (str(usual["mem_limit"]), float(usual["cpus"])) in [("4g", 0), (str(4 << 30), 0)]


def test_the_monitoring_profile_comes_on_top():
    """Prometheus asks by the name that both services have in the network; nothing but loopback is published."""
    services = read()
    asked = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())["scrape_configs"][0]
    assert asked["static_configs"] == [{"targets": ["foldserve:8000"]}]
    for service in ("cpu", "gpu"):
        assert services[service]["networks"]["default"]["aliases"] == ["foldserve"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        assert all("127.0.0.1" in str(port) for port in services[name]["ports"])


def test_the_grace_period_exceeds_what_the_end_takes():
    """Compose kills later than the service ends by itself: leaving, draining, and the supervisor's patience."""
    service = yaml.safe_load(FILE.read_text())["x-service"]
    seconds = float(re.search(r"(\d+)s", service["stop_grace_period"])[1])
    settings = {name: field.default for name, field in Settings.model_fields.items()}
    assert seconds > settings["leave_seconds"] + settings["drain_seconds"] + GRACE_SECONDS


if __name__ == "__main__":
    lines = "".join(f"    - {name}\n" for name in that_pass())
    FILE.write_text(re.sub(r"(    - FOLDSERVE_[A-Z_0-9]+\n)+", lines, FILE.read_text()))
