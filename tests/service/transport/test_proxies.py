"""Whose word is taken on where a request comes from, and that nobody else's is."""

import pytest

from foldserve.service.settings import Settings
from foldserve.service.transport.guard import Guard
from foldserve.service.transport.proxies import TrustedProxies
from tests.support.wire import ignore, limited

PROXIES = TrustedProxies(("10.0.0.0/8", "::1"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", [b"192.0.2.7"], "192.0.2.7"),
        ("::1", [b"2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", [b"192.0.2.7, 10.3.3.3"], "192.0.2.7"),
        ("10.0.0.1", [b"192.0.2.7", b" 10.3.3.3 "], "192.0.2.7"),
        ("10.0.0.1", [b"198.51.100.1, 192.0.2.7"], "192.0.2.7"),  # the first is the client's own claim
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"unknown"], "10.0.0.1"),
        ("10.0.0.1", [b"x, 10.3.3.3"], "10.0.0.1"),
        ("192.0.2.1", [b"192.0.2.7"], "192.0.2.1"),
        ("", [b"192.0.2.7"], ""),
    ],
)
def test_the_last_address_that_no_proxy_has_is_the_clients(peer: str, forwarded: list[bytes], client: str) -> None:
    """From the right, past proxies that are trusted; no header from anybody else changes anything."""
    assert PROXIES.client(peer, forwarded) == client


def test_nobody_is_trusted_by_default() -> None:
    """Not the own machine either."""
    assert TrustedProxies(Settings().trusted_proxies).client("127.0.0.1", [b"192.0.2.7"]) == "127.0.0.1"


def test_a_name_is_no_proxy() -> None:
    """The setting takes addresses and networks."""
    with pytest.raises(ValueError, match="trusted_proxies"):
        Settings(trusted_proxies=("proxy.internal",))
    assert Settings(trusted_proxies="10.0.0.0/8, ::1").trusted_proxies == ("10.0.0.0/8", "::1")


def test_the_connections_of_a_proxy_are_not_those_of_one_client() -> None:
    """A trusted proxy may hold more than an address may; the limit of all holds for it too."""

    class Stub:
        def check(self, now: float) -> None: ...

    guard = Guard(limited(connections=3, connections_per_address=1, proxies=PROXIES), ignore)
    guard._schedule = lambda: None
    assert [guard.enter(Stub(), "10.0.0.1") for _ in range(3)] == [True, True, True]
    assert not guard.enter(Stub(), "192.0.2.1")
