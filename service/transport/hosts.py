"""Under which names a service may be called: a page of somebody else's must not reach it by a name of its own.

A browser lets a page talk to the name that it was loaded from. The owner of that name can point it at 127.0.0.1 once
the page is there (DNS rebinding), and then only the header Host tells such a request from an honest one.
"""

import ipaddress
import re
from collections.abc import Sequence

from ..errors import InvalidInput, clip
from ..settings import Settings

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::([0-9]{0,5}))?")
_LOOPBACK_NAMES = ("localhost", "*.localhost")  # no name server is asked for them
_MAX_PORT = 65_535


class AllowedHosts:
    """The names by which a service answers; literal addresses always pass, since nobody can point them elsewhere.

    Args:
        names: in lower case; `*.example.org` stands for every name below; None lets every name pass.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._any = names is None
        self._names = {name for name in names or () if not name.startswith("*.")}
        self._endings = tuple(name[1:] for name in names or () if name.startswith("*."))

    def check(self, value: bytes) -> None:
        """Refuse what is no host, and a name that is not one of the service's.

        Args:
            value: a host, with or without a port.

        Raises:
            InvalidInput: it may not pass.
        """
        match = _HOST.fullmatch(value)
        if match is None or int(match[2] or 0) > _MAX_PORT:
            quoted = clip(value.decode("latin-1"))
            raise InvalidInput(f"Host: {quoted!r}, expected a name or an address, such as localhost:8000")
        name = match[1].decode("ascii").lower().rstrip(".")
        is_literal = _is_address(name.strip("[]"))
        if name.startswith("[") and not is_literal:
            raise InvalidInput(f"Host: {clip(name)!r}, expected an IPv6 address between the brackets")
        if not (self._any or is_literal or name in self._names or name.endswith(self._endings)):
            raise InvalidInput(
                f"Host: {clip(name)!r} is no name of this service: if it is one, add it to --allowed-hosts"
            )


def allowed_hosts(settings: Settings) -> AllowedHosts:
    """Return the names that the settings allow: those they list, else those of loopback where only that is bound."""
    names = settings.allowed_hosts
    if "*" in names or not (names or _is_loopback(settings.host)):
        return AllowedHosts()
    return AllowedHosts((*_LOOPBACK_NAMES, *names))


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
