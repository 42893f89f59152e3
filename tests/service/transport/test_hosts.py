"""Which names pass by default, and which by the setting."""

import pytest

from foldserve.service.errors import InvalidInput
from foldserve.service.settings import Settings
from foldserve.service.transport.hosts import allowed_hosts


@pytest.mark.parametrize(
    ("bound", "names", "host", "passes"),
    [
        ("127.0.0.1", "", b"localhost:8000", True),
        ("127.0.0.1", "", b"LOCALHOST.", True),
        ("127.0.0.1", "", b"a.localhost", True),
        ("127.0.0.1", "", b"127.0.0.1:8000", True),
        ("127.0.0.1", "", b"192.0.2.7", True),
        ("127.0.0.1", "", b"[2001:db8::7]:80", True),
        ("127.0.0.1", "", b"evil.example", False),
        ("127.0.0.1", "", b"localhost.evil.example", False),
        ("127.0.0.1", "", b"evil-localhost", False),
        ("127.0.0.1", "", b"127.0.0.1.evil.example", False),
        ("127.8.0.1", "", b"evil.example", False),
        ("::1", "", b"evil.example", False),
        ("localhost", "", b"evil.example", False),
        ("0.0.0.0", "", b"foldserve:8000", True),
        ("::", "", b"evil.example", True),
        ("192.0.2.7", "", b"api.example.org", True),
        ("0.0.0.0", "api.example.org", b"API.example.org:443", True),
        ("0.0.0.0", "api.example.org", b"evil.example", False),
        ("0.0.0.0", "api.example.org", b"localhost", True),
        ("0.0.0.0", "*.example.org", b"a.b.example.org", True),
        ("0.0.0.0", "*.example.org", b"example.org", False),
        ("0.0.0.0", "*.example.org", b"badexample.org", False),
        ("127.0.0.1", "*", b"evil.example", True),
    ],
)
def test_names_pass_by_what_is_bound_and_listed(bound: str, names: str, host: bytes, passes: bool) -> None:
    """Literal addresses always; on loopback its own names alone, unless more are listed."""
    hosts = allowed_hosts(Settings(host=bound, allowed_hosts=names))
    if passes:
        hosts.check(host)
    else:
        with pytest.raises(InvalidInput, match="--allowed-hosts"):
            hosts.check(host)


@pytest.mark.parametrize("names", ["http://a", "a:80", "a/b", " , "])
def test_a_listed_name_is_a_name(names: str) -> None:
    """No URL and no port."""
    if names.strip(" ,"):
        with pytest.raises(ValueError, match="allowed_hosts"):
            Settings(allowed_hosts=names)
    else:
        assert Settings(allowed_hosts=names).allowed_hosts == ()
