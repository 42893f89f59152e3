"""The rule for names of models and for numbers of versions: `models/<name>/<version>/`.

Both are folders, and parts of an URL, and Triton reads the same folders; so both are narrow. Training refuses a name
that breaks the rule before it trains; the service leaves such a folder out.
"""

import re

MODEL_NAME_RULE = "1 to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen, the first one a letter or a digit"
VERSION_RULE = "a whole number from 1 up to 18 digits, without leading zeros"

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


def is_model_name(text: str) -> bool:
    """Return whether `text` can be the name of a model."""
    return _MODEL_NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Return whether `text` is the number of a version, as a folder or a request writes it."""
    return _VERSION.fullmatch(text) is not None
