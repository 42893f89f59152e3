"""The pages that are made from the code say what the code says.

Whoever changes a setting writes the page anew with `make reference`.
"""

import html
from pathlib import Path
from typing import Any

from foldserve.service.settings import ENV_PREFIX, Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"

SETTINGS_HEAD = """# Settings of the service

Each is an environment variable and a flag of `foldserve serve` (`FOLDSERVE_MAX_ROWS` is `--max-rows`); flags win. An
unknown `FOLDSERVE_` variable ends the start: a misspelt limit is a limit that is not there. What Kubernetes sets for a
Service whose name begins with foldserve (`FOLDSERVE_PORT=tcp://…`) is passed over. Made from the code by
`make reference`.

| variable | default | meaning |
|---|---|---|
"""


def written(default: Any) -> str:
    """A default as one would write it into the variable; nothing where it is unset."""
    text = "" if default is None else ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"`{text}`" if text else ""


def settings_page() -> str:
    """docs/settings.md, one row for each setting."""
    rows = (
        f"| `{ENV_PREFIX}{name.upper()}` | {written(field.default)} | {html.escape(str(field.description), False)} |\n"
        for name, field in Settings.model_fields.items()
    )
    return SETTINGS_HEAD + "".join(rows)


PAGES = {"settings.md": settings_page}


def test_the_pages_are_as_the_code_has_it():
    """Names, defaults and meanings of all settings, and no others."""
    assert {page: (DOCS / page).read_text() for page in PAGES} == {page: make() for page, make in PAGES.items()}


if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make())
