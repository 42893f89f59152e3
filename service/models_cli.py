"""`foldserve models` and `foldserve keys`: what an operator types.

The first talks to a running service over HTTP, so that it works from anywhere and can do no more than its key allows;
the second writes to the terminal, and to the keys file where a key is taken back.
"""

import argparse
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldserve.arguments import Parser, add_json
from foldserve.exit_codes import DONE, FAILED
from foldserve.json_document import complain, fill
from foldserve.key_file import KEY_VARIABLE, read_key
from foldserve.patience import shown

from .errors import ServiceError
from .keys import SCOPES, add_key, new_key, read_keys, revoke_key

_TIMES = frozenset({"at", "since", "until"})  # names of moments in answers
_TIMEOUT_SECONDS = 300  # a load takes as long as the model is large


class CommandError(Exception):
    """The service answered with an error, or not at all; the message is one sentence."""


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0, or 1 with one line on standard error."""
    arguments = _parser().parse_args(argv)
    try:
        said = arguments.run(arguments)
    except CommandError as err:
        complain(str(err))
        return FAILED
    if not arguments.json:
        print(said)
    return DONE


def _list(arguments: argparse.Namespace) -> str:
    rows = _call(arguments, "POST", "/v2/repository/index", {})
    fill(models=rows)
    lines = [(r["name"], r["version"], r["state"], ",".join(r.get("labels", ())), r["reason"]) for r in rows]
    return _table([("model", "version", "state", "labels", "reason"), *lines])


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _show(arguments: argparse.Namespace) -> str:
    return _text(_call(arguments, "GET", _path(arguments)))


def _change(arguments: argparse.Namespace) -> str:
    """Make a call that changes a model; returns where that led."""
    named = {name: getattr(arguments, name, None) for name in ("version", "label", "seconds")}
    body = {name: value for name, value in named.items() if value is not None}
    answer = _call(arguments, "POST", _path(arguments, arguments.call), body)
    return _text(answer) if answer else _show(arguments)


def _unload(arguments: argparse.Namespace) -> str:
    _call(arguments, "POST", _path(arguments, "unload"), {})
    fill(model=arguments.model)
    return f"{arguments.model} is unloaded"


def _shadow(arguments: argparse.Namespace) -> str:
    return _text(_call(arguments, "DELETE", _path(arguments, "shadow"))) if arguments.end else _change(arguments)


def _new(arguments: argparse.Namespace) -> str:
    try:
        key, line = new_key(arguments.name, arguments.scopes.split(","))
    except ServiceError as err:
        raise CommandError(str(err)) from err
    fill(key=key, line=line)
    if arguments.file is None:
        return f"the key, shown this once: {key}\nthe line for the keys file:  {line}"
    try:
        add_key(arguments.file, line)
    except ServiceError as err:
        raise CommandError(str(err)) from err
    return key


def _keys(arguments: argparse.Namespace) -> str:
    try:
        keys = read_keys(arguments.file)
    except ServiceError as err:
        raise CommandError(str(err)) from err
    listed = [(key.name, ",".join(scope for scope in SCOPES if scope in key.scopes)) for key in keys]
    fill(keys=[{"name": name, "scopes": scopes.split(",")} for name, scopes in listed])
    return _table([("name", "scopes"), *listed])


def _revoke(arguments: argparse.Namespace) -> str:
    try:
        revoke_key(arguments.file, arguments.name)
    except ServiceError as err:
        raise CommandError(str(err)) from err
    fill(name=arguments.name)
    return f"key {arguments.name} is revoked; a service that runs notices within two seconds"


def _call(arguments: argparse.Namespace, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Call the service; returns its JSON, None where the answer is empty."""
    headers = {"Content-Type": "application/json"}
    try:
        key = read_key(arguments.key_file)
    except ValueError as err:
        raise CommandError(str(err)) from err
    if key:
        headers["X-API-Key"] = key
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(arguments.url.rstrip("/") + path, data, headers, method=method)  # noqa: S310
    try:
        with (
            shown(f"{method} {path}: waiting for {arguments.url}"),
            urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer,  # noqa: S310
        ):
            text = answer.read()
    except urllib.error.HTTPError as err:
        raise CommandError(f"{err.code}: {_sentence(err.read())}") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "reason", err)
        raise CommandError(
            f"no answer from {arguments.url}: {reason}; does a service run there? --url names another"
        ) from err
    return json.loads(text) if text else None


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return "the answer is not this service's"


def _path(arguments: argparse.Namespace, call: str = "") -> str:
    path = f"/v2/repository/models/{urllib.parse.quote(arguments.model, safe='')}"
    return f"{path}/{call}" if call else path


def _text(answer: Any) -> str:
    fill(**answer)
    return json.dumps(_dated(answer), indent=2, ensure_ascii=False)


def _dated(value: Any) -> Any:
    """Return what the service answered with its times as people write them; `--json` gives them as they are."""
    if isinstance(value, dict):
        return {name: _date(one) if name in _TIMES else _dated(one) for name, one in value.items()}
    return [_dated(one) for one in value] if isinstance(value, list) else value


def _date(seconds: Any) -> Any:
    """Return a moment in UTC; of anything but seconds since 1970 itself."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}" if isinstance(seconds, int | float) else seconds


def _add_service(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Let a parser take where the service is and with which key, before the call and behind it; the latter wins."""
    url = "where the service is (default: http://127.0.0.1:8000)"
    parser.add_argument("--url", default=defaults.get("url", argparse.SUPPRESS), help=url)
    key = f"file that holds the admin key (default: ${KEY_VARIABLE})"
    parser.add_argument("--key-file", type=Path, default=defaults.get("key_file", argparse.SUPPRESS), help=key)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="foldserve")
    groups = parser.add_subparsers(required=True)
    models = groups.add_parser("models", help="list, load, promote, roll back and compare models of a running service")
    _add_service(models, url="http://127.0.0.1:8000", key_file=None)
    calls = models.add_subparsers(required=True)
    listing = calls.add_parser("list", help="every version and its state")
    listing.set_defaults(run=_list)
    _add_service(listing)
    add_json(listing)
    for name, run, text in (
        ("show", _show, "labels, versions, history and comparison"),
        ("load", _change, "load the newest version, or --version"),
        ("unload", _unload, "let the model answer nothing until it is loaded"),
        ("promote", _change, "point a label at a version"),
        ("rollback", _change, "point a label back at the version before"),
        ("shadow", _shadow, "compare --version with live inputs for --seconds"),
    ):
        call = calls.add_parser(name, help=text)
        call.add_argument("model")
        call.set_defaults(run=run, call=name)
        _add_service(call)
        add_json(call)
        if name in ("load", "promote", "shadow"):
            call.add_argument("--version", type=int)
        if name in ("promote", "rollback"):
            call.add_argument("--label", help="latest where none is named")
        if name == "shadow":
            call.add_argument("--seconds", type=float)
            call.add_argument("--end", action="store_true", help="end the comparison")
    keys = groups.add_parser("keys", help="make API keys, and take them back").add_subparsers(required=True)
    new = keys.add_parser("new", help="make a key and the line that makes it known")
    new.add_argument("--name", required=True, help="whose key it is")
    new.add_argument("--scopes", required=True, help=f"some of {','.join(SCOPES)}")
    new.add_argument(
        "--file",
        type=Path,
        help="keys file that takes the line, made where it is not there; the key alone is printed then",
    )
    new.set_defaults(run=_new)
    revoke = keys.add_parser("revoke", help="take the keys of a name out of the keys file, also the last one")
    revoke.add_argument("--name", required=True, help="whose key it is")
    revoke.add_argument("--file", type=Path, required=True, help="the keys file")
    revoke.set_defaults(run=_revoke)
    known = keys.add_parser("list", help="the names and scopes of a keys file")
    known.add_argument("--file", type=Path, required=True, help="the keys file")
    known.set_defaults(run=_keys)
    for command in (new, revoke, known):
        add_json(command)
    return parser
