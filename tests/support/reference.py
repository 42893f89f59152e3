"""The pages of docs/ that are made from the code: settings, routes over HTTP, names in Python."""

import ast
import html
import inspect
import re
import textwrap
from typing import Any

import foldserve
from foldserve.service.access import scope_of
from foldserve.service.app import create_app
from foldserve.service.openapi_errors import REASONS
from foldserve.service.settings import ENV_PREFIX, Settings
from tests.support.metrics_page import metrics

MADE = "Made from the code by `make reference`."

SETTINGS_HEAD = f"""# Settings of the service

Each is an environment variable and a flag of `foldserve serve` (`FOLDSERVE_MAX_ROWS` is `--max-rows`), and may stand in
the TOML file that `--config` names (`max_rows = 100`); flags win, then the environment. Unknown names end the start: a
misspelt limit is a limit that is not there. What Kubernetes sets for a Service whose name begins with foldserve
(`FOLDSERVE_PORT=tcp://…`) is passed over. {MADE}

| variable | default | meaning |
|---|---|---|
"""

HTTP_HEAD = f"""# Routes over HTTP

What a running service shows at `/docs` with examples, and as OpenAPI at `/openapi.json`. Once there is a keys file, a
route needs a key with its scope, where that scope is closed ([keys](operations.md)). {MADE}

| route | what it does | scope |
|---|---|---|
"""

ERRORS_HEAD = """
## Errors

Every error is `{"error": "one sentence"}` of at most 2 KB, over all routes alike.

| status | when |
|---|---|
"""

PYTHON_HEAD = f"""# Names in Python

`from foldserve import NAME`: loaded on first use, so that `import foldserve` needs no extra.
{MADE}
"""


def settings() -> str:
    """One row for each setting."""
    rows = (
        f"| `{ENV_PREFIX}{name.upper()}` | {_default(field.default)} | {html.escape(str(field.description), False)} |\n"
        for name, field in Settings.model_fields.items()
    )
    return SETTINGS_HEAD + "".join(rows)


def _default(default: Any) -> str:
    """As one would write it into the variable; nothing where it is unset."""
    text = "" if default is None else ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"`{text}`" if text else ""


def routes() -> str:
    """One row for each method of each path, in the order of OpenAPI, and one for each status of an error."""
    paths = create_app(Settings(provider="cpu")).openapi()["paths"]
    rows = (
        f"| `{method.upper()} {path}` | {told['summary']} | {scope_of(method.upper(), path)} |\n"
        for path, methods in paths.items()
        for method, told in methods.items()
    )
    errors = (f"| {status} | {reason} |\n" for status, reason in REASONS.items())
    return HTTP_HEAD + "".join(rows) + ERRORS_HEAD + "".join(errors)


def python() -> str:
    """Each public name with its signature and its docstring."""
    names = sorted((name for name in foldserve.__all__ if not name.startswith("_")), key=lambda name: name.lower())
    return PYTHON_HEAD + "".join(_described(name, getattr(foldserve, name)) for name in names)


def _described(name: str, thing: Any) -> str:
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    text = _as_markdown(inspect.getdoc(thing) or "")
    return f"\n## {name}\n\n```python\n{_signature(node)}\n```\n\n{text}\n"


def _signature(node: ast.stmt) -> str:
    """`def f(x: int) -> str`, or `class C(Base)`, as the source has it."""
    match node:
        case ast.FunctionDef():
            node.body, node.decorator_list = [ast.Expr(ast.Constant(...))], []
            return re.sub(r":\s+\.\.\.$", ": ...", ast.unparse(node))
        case ast.ClassDef(name=name, bases=bases):
            parents = ", ".join(map(ast.unparse, bases))
            return f"class {name}({parents}): ..." if parents else f"class {name}: ..."
    raise AssertionError(node)


def _as_markdown(docstring: str) -> str:
    """Google's sections as lists."""
    section = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
    lines = []
    for line in docstring.splitlines():
        inside = line.removeprefix("    ")
        if heading := section.match(line):
            lines += [f"**{heading[1]}**", ""]
        elif line.startswith("    ") and not inside.startswith(" "):
            entry = re.match(r"(\w+):(?: |$)(.*)", inside)
            lines.append(f"- `{entry[1]}`: {entry[2]}" if entry else inside)
        else:
            lines.append(inside)
    return html.escape("\n".join(line.rstrip() for line in lines), False)


PAGES = {"settings.md": settings, "http.md": routes, "python.md": python, "metrics.md": metrics}
