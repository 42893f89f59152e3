"""Every setting of the service: name, unit, default and what it does.

Each one is read from `FOLDSERVE_<NAME>` and can be given as a flag (`--models-dir`), which wins, or in a file
(`--config foldserve.toml`: `models_dir = "models"`), over which both win. A name that is not listed here ends the
start, since a misspelt limit is a limit that is not there. Knows no other part of the service but `stated`.
"""

import argparse
import ipaddress
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from foldserve.arguments import Parser
from foldserve.bundled import bundled_models
from foldserve.format.names import MODEL_NAME_RULE, is_model_name, is_version
from foldserve.format.picture_types import PICTURE_FORMATS, USUAL_FORMATS

from .stated import from_environment, from_file

ENV_PREFIX = "FOLDSERVE_"
_SERVES = "Serve the newest version of every model in a folder over HTTP."
MEBIBYTE = 1024 * 1024
_NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_.*"
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """Return batch sizes as a tuple.

    Raises:
        ValueError: they are empty, not rising, or below 1.
    """
    if not buckets or buckets[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(buckets)):
        raise ValueError("expected rising batch sizes from 1 up, such as 1,8,32")
    return tuple(buckets)


class Settings(BaseModel):
    """The settings of one service; frozen, so that every part sees the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path | None = Field(
        None, description="TOML file of settings, by their names here; flags and variables win over it; unset: none"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 127.0.0.1 is reachable from this machine only")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="TCP port for gRPC; 0 takes a free one; unset: none"
    )
    models_dir: Path = Field(
        Path("models"),
        description="folder that holds <model>/<version>/model.onnx, or one model alone: 1/model.onnx or model.onnx",
    )
    model_name: str | None = Field(
        None,
        description="name of a model that is in the models folder by itself; unset: that of its manifest, else that of "
        "the folder",
    )
    state_dir: Path | None = Field(
        None,
        description="writable folder for labels, rollbacks and shadows; unset: latest is always the newest version",
    )
    state_lock_seconds: float = Field(
        5.0, gt=0, description="seconds that a call which changes models waits for the state folder; then it is 503"
    )
    poll_seconds: float = Field(1.0, ge=0, description="seconds between two polls for new versions; 0 disables polling")
    load_seconds: float = Field(
        120.0,
        gt=0,
        description="seconds in which a version has to be loaded and proved; then it is given up and refused",
    )
    prove_above_bytes: int | None = Field(
        None,
        ge=0,
        description="bytes of a model file from which on it is first loaded in a process of its own, which a lack of "
        "memory ends in place of this one; unset: an eighth of the memory that is free; once the service runs, every "
        "new kind of model is; on the CPU only",
    )
    allow_unverified: bool = Field(
        False, description="also serve ONNX files without a manifest, whose answers are not verified, marked as such"
    )
    promote_new: bool = Field(
        True, description="let a new version become latest by itself, once it gave its golden answers"
    )
    strict_start: bool = Field(
        False, description="end the start when any model has no version that can be served, not only when all have none"
    )
    pin: tuple[str, ...] = Field(
        (), description="versions that are latest whatever operators call for, name=version each; unset: none"
    )
    label: tuple[str, ...] = Field(
        (), description="labels that point at a version whatever operators call for, name:label=version each"
    )
    deployment_file: Path | None = Field(
        None, description="TOML file of such pins and labels, followed while it changes; unset: none"
    )
    keep_warm: int = Field(
        1, ge=0, le=16, description="versions that were latest before and stay loaded for a rollback"
    )
    keys_file: Path | None = Field(
        None,
        description="file of API keys, one a line: <name> <scope,scope> <SHA-256>; unset: open, and no admin calls",
    )
    closed_scopes: tuple[str, ...] = Field(
        ("infer", "metrics"), description="scopes that need a key once there is a keys file: infer, metrics, read"
    )
    key_rate: float = Field(
        0.0, ge=0, description="requests a second of one key, in all workers together; 0 sets no limit"
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="names that the header Host may hold besides localhost and addresses, *.example.org or * too; "
        "unset: no others where loopback is bound, any elsewhere",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="addresses or networks of proxies that name the client by X-Forwarded-For or the PROXY protocol; "
        "unset: none",
    )
    page: bool = Field(
        True, description="show a page at / where people can try the models; without it / leads to /docs"
    )
    workers: int = Field(1, ge=1, le=256, description="processes that share the port; the replicas, on Ray")
    on: Literal["processes", "ray"] = Field(
        "processes", description="what runs the service: processes of this machine, or Ray Serve (extra ray)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line written")
    log_file: Path | None = Field(
        None, description="file that the log is appended to, made anew when it was moved away; unset: standard error"
    )

    access_log_rate: float = Field(
        0.0, ge=0, description="lines a second of one process that tell of a request each; 0 writes none"
    )
    otlp_endpoint: str | None = Field(
        None,
        description="address of an OpenTelemetry collector that gets spans of requests over HTTP, such as "
        "http://localhost:4318 (extra otel); unset: none",
    )
    otlp_share: float = Field(
        1.0, ge=0, le=1, description="part of the requests that are traced, of those whose traceparent does not say"
    )
    provider: Literal["auto", "cuda", "cpu"] = Field(
        "auto",
        description="device to run on; without a usable GPU cuda ends the start, auto warns and takes the CPU",
    )
    cuda_device: int = Field(0, ge=0, description="which GPU, in CUDA's own order")
    tf32: bool = Field(False, description="let CUDA round products to TF32: faster, and off by up to 5e-3")
    threads: int = Field(
        0, ge=0, le=256, description="threads of a run on the CPU; 0 measures which batches gain by more than one"
    )
    specialise: bool = Field(
        True, description="on the CPU, run a rewritten graph where it gives the golden answers and is measured faster"
    )
    buckets: Annotated[tuple[int, ...], AfterValidator(check_buckets)] = Field(
        DEFAULT_BUCKETS, description="batch sizes in rows, rising; each batch is padded to one"
    )
    inline_below_ms: float = Field(
        1.0, ge=0, description="batches expected to run shorter than this many ms run on the event loop itself"
    )

    max_free_axis: int = Field(
        4_096, ge=1, description="largest size of an axis behind the batch that a graph leaves free"
    )
    max_rows: int = Field(10_000, ge=1, description="rows in one request; more are answered 413")
    max_body_bytes: int = Field(64 * MEBIBYTE, ge=1, description="bytes in one body; more are answered 413")
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="pixels in one encoded image; more are refused undecoded"
    )
    max_image_scans: int = Field(64, ge=1, description="scans in one JPEG file; more are refused undecoded")
    image_formats: tuple[str, ...] = Field(
        USUAL_FORMATS,
        description="files of pictures that are decoded: png, jpeg, and where you accept a decoder more that strangers "
        "reach, webp, gif (its first frame), bmp, tiff (its first page)",
    )
    decode_threads: int = Field(
        0, ge=0, le=256, description="threads of one worker that decode pictures; 0 takes its share of the cores"
    )
    max_decode_bytes: int = Field(
        128 * MEBIBYTE, ge=1, description="bytes of pictures waiting to be decoded in one worker; more are answered 503"
    )
    max_decode_pixels: int = Field(
        200_000_000, ge=1, description="pixels of pictures decoded at once in one worker; others wait for their turn"
    )
    max_queue_rows: int = Field(
        20_000,
        ge=1,
        description="rows waiting for a model in one worker, and no more bytes than max_buffered_bytes; more are "
        "answered 503",
    )
    max_buffered_bytes: int = Field(
        512 * MEBIBYTE, ge=1, description="bytes of all bodies that one worker holds at once; more are answered 503"
    )
    default_deadline_ms: int = Field(
        5_000, ge=1, description="ms within which a request is answered or refused, unless it states a deadline"
    )
    drain_seconds: float = Field(20.0, gt=0, description="seconds that running requests get when the service ends")
    leave_seconds: float = Field(
        0.0,
        ge=0,
        description="seconds that requests are answered after the signal to end, while ready is 503, until balancers "
        "send no more; a second signal ends them",
    )
    hang_seconds: float = Field(
        10.0,
        ge=0,
        description="seconds that the event loop or a batch may hang before the process ends; 0 disables the check",
    )
    canary_seconds: float = Field(
        5.0,
        ge=0,
        description="seconds between two checks of an idle model's golden answers; 0 disables them",
    )
    keep_alive_seconds: int = Field(75, ge=1, description="seconds an idle connection stays open")
    header_seconds: float = Field(10.0, gt=0, description="seconds in which all headers of a request have to arrive")
    max_header_bytes: int = Field(
        32_768, ge=256, description="bytes of all headers of a request; more are answered 431"
    )
    body_seconds: float = Field(
        30.0,
        gt=0,
        description="seconds that a body may take; a longer one has to bring 16 KiB a second over any such time",
    )
    write_seconds: float = Field(
        30.0, gt=0, description="seconds that an answer may take to be read, and one more for each 16 KiB"
    )
    max_connections: int = Field(8_192, ge=1, description="open connections of one worker; one more is answered 503")
    max_connections_per_address: int = Field(
        4_096, ge=1, description="open connections of one address at one worker; one more is answered 503"
    )
    grpc_max_connections: int = Field(
        1_024, ge=1, description="open connections of gRPC at one worker, three descriptors each; one more is closed"
    )
    grpc_max_connections_per_address: int = Field(
        512, ge=1, description="open connections of gRPC of one address at one worker; one more is closed"
    )
    grpc_max_streams: int = Field(
        256, ge=1, description="calls that one connection of gRPC may have at once; clients keep the others back"
    )

    @field_validator("model_name")
    @classmethod
    def _is_model_name(cls, name: str | None) -> str | None:
        if name is not None and not is_model_name(name):
            raise ValueError(f"expected {MODEL_NAME_RULE}")
        return name

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", endpoint):
            raise ValueError("expected an address of HTTP, such as http://localhost:4318")
        return endpoint

    @field_validator("image_formats")
    @classmethod
    def _formats_exist(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if not formats or not set(formats) <= set(PICTURE_FORMATS):
            raise ValueError(f"expected formats among {', '.join(PICTURE_FORMATS)}, such as png,jpeg,webp")
        return tuple(name for name in PICTURE_FORMATS if name in formats)

    @field_validator("closed_scopes")
    @classmethod
    def _scopes_exist(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if not set(scopes) <= {"infer", "metrics", "read"}:
            raise ValueError("expected scopes among infer, metrics and read, such as infer,metrics")
        return scopes

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.strip().lower().rstrip(".") for name in names)
        if any(not name or not set(name) <= set(_NAME_CHARACTERS) for name in names):
            raise ValueError("expected names without scheme and port, such as api.example.org,*.example.net")
        return names

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network.strip(), strict=False)
        return tuple(network.strip() for network in networks)

    @field_validator("pin", "label")
    @classmethod
    def _are_declarations(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        entries = tuple(entry.strip() for entry in entries)
        expected, example = (2, "lenet-bn:canary=7") if info.field_name == "label" else (1, "lenet-bn=2")
        places: dict[str, str] = {}
        for entry in entries:
            place, _, version = entry.rpartition("=")
            name, *label = place.split(":")
            is_label = all(_LABEL.fullmatch(text) and text != "latest" for text in label)
            if not (is_model_name(name) and is_version(version) and is_label and len(label) == expected - 1):
                raise ValueError(f"expected model and version, such as {example}")
            if places.setdefault(place, version) != version:
                raise ValueError(f"{place} is given twice, as {places[place]} and as {version}")
        return entries

    @field_validator(
        "buckets", "image_formats", "closed_scopes", "allowed_hosts", "trusted_proxies", "pin", "label", mode="before"
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _add_sources(cls, given: dict[str, Any]) -> dict[str, Any]:
        known = set(cls.model_fields)
        stated = from_environment(ENV_PREFIX, known) | given
        file = stated.get("config")
        return stated if file is None else from_file(Path(file), known - {"config"}) | stated

    @model_validator(mode="after")
    def _queue_holds_one_request(self) -> Self:
        if self.max_queue_rows < self.max_rows:
            raise ValueError(
                f"max_queue_rows is {self.max_queue_rows} and max_rows {self.max_rows}; "
                "the queue has to hold at least one request of the largest size"
            )
        return self

    @property
    def default_timeout_seconds(self) -> float:
        """`default_deadline_ms` in seconds."""
        return self.default_deadline_ms / 1000

    @classmethod
    def from_command_line(
        cls, argv: Sequence[str] | None = None, program: str = "foldserve serve", description: str = _SERVES
    ) -> Self:
        """Read the settings from flags, then the environment, then a file where one is named, then the defaults.

        Args:
            argv: the words after the program's name; None takes those of this process.
            program: whose name stands in messages.
            description: of the program, for its help.

        Raises:
            SystemExit: code 0 after `--help`; code 2, with one line per mistake, when a value cannot be used.
        """
        parser = _parser(program, description)
        given = {name: _typed(value) for name, value in vars(parser.parse_args(argv)).items() if value is not None}
        if given.pop("demo"):
            given["models_dir"] = _bundled(parser, given)
        try:
            return cls(**given)
        except ValidationError as error:
            parser.error("; ".join(_sentence(mistake) for mistake in error.errors()))


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    """One flag for each setting; values stay text, since the settings themselves check them."""
    parser = Parser(
        prog=program,
        description=description,
        epilog=f"Each flag can also be set in the environment (--models-dir is {ENV_PREFIX}MODELS_DIR), or in the file "
        "that --config names. Flags win, then the environment.",
    )
    for name, field in Settings.model_fields.items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        explained = f"{field.description} (default: {default})".replace("%", "%%")
        is_list = isinstance(field.default, tuple)  # such a flag may be given several times
        action = argparse.BooleanOptionalAction if field.annotation is bool else "append" if is_list else "store"
        parser.add_argument(f"--{name.replace('_', '-')}", action=action, default=None, help=explained)
    parser.add_argument("--demo", action="store_true", help="serve the model that is part of foldserve")
    return parser


def _typed(value: Any) -> Any:
    """The text of one flag; those of a list that was given in parts are one."""
    return ",".join(value) if isinstance(value, list) else value


def _bundled(parser: argparse.ArgumentParser, given: dict[str, Any]) -> Path:
    """The folder of models for `--demo`."""
    models = bundled_models()
    if "models_dir" in given:
        parser.error("--demo serves the model that is part of foldserve; leave --models-dir out, or --demo")
    if models is None:
        parser.error("--demo: this installation has no model; name a folder with --models-dir")
    return models


def _sentence(mistake: Any) -> str:
    """One mistake, under the names that the caller knows."""
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if not mistake["loc"]:
        return message
    name = str(mistake["loc"][0])
    return f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()}): {message}, got {mistake['input']!r}"
