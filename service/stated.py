"""Where settings are stated: variables of the environment, and a TOML file; unknown names are refused in both.

Between the system and `settings`, which knows the names and checks the values. What a cluster sets for every Service
whose name begins with foldserve is told from what is misspelt.
"""

import os
import re
import tomllib
from collections.abc import Set
from pathlib import Path
from typing import Any

# What Kubernetes sets in every pod for each Service, in the form of Docker's links: neither a setting nor misspelt.
# Source: kubernetes.io, "Service", environment variables; pkg/kubelet/envvars/envvars.go.
_LINK_NAME = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


def from_environment(prefix: str, known: Set[str]) -> dict[str, Any]:
    """Return the settings that the environment states, as text.

    Args:
        prefix: of the variables, in capitals.
        known: names of all settings.

    Raises:
        ValueError: a variable begins with the prefix and is no setting.
    """
    names = {f"{prefix}{name}".upper(): name for name in known}
    environment = {name: value for name, value in os.environ.items() if name.upper().startswith(prefix)}
    environment = {name: value for name, value in environment.items() if not _is_service_link(name, value)}
    unknown = sorted(variable for variable in environment if variable.upper() not in names)
    if unknown:
        raise ValueError(
            f"the environment sets {', '.join(unknown)}, which is no setting; unset it or correct its name"
        )
    return {names[variable.upper()]: value for variable, value in environment.items()}


def from_file(file: Path, known: Set[str]) -> dict[str, Any]:
    """Return the settings that a file states, as text; `max-rows` is `max_rows`.

    Args:
        file: in TOML, one key for each setting.
        known: names of all settings that may stand there.

    Raises:
        ValueError: it cannot be read, names no setting or one twice, or a value is no text, number, truth or list.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(f"--config {file} cannot be read: {err}") from err
    stated: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ValueError(f"--config {file} sets {key[:80]!r}, which is no setting; correct its name or take it out")
        if name in stated:
            raise ValueError(f"--config {file} sets {name} twice, as {key!r} too")
        stated[name] = _text(file, key, value)
    return stated


def _text(file: Path, key: str, value: Any) -> str:
    """One value as a flag would give it."""
    if isinstance(value, list) and all(isinstance(entry, str | int) for entry in value):
        return ",".join(map(_text_of, value))
    if not isinstance(value, str | int | float):
        raise ValueError(f"--config {file}: {key} is a {type(value).__name__}, expected a text, a number or a list")
    return _text_of(value)


def _text_of(value: str | int | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_service_link(name: str, value: str) -> bool:
    """Whether a cluster set a variable to say where a Service is, whose name happens to begin as our settings do."""
    if _LINK_NAME.fullmatch(name.upper()):
        return True
    return name.upper().endswith("_PORT") and _LINK_VALUE.fullmatch(value) is not None
