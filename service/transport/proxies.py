"""Whose address a request has: that of its connection or, behind a proxy that is trusted, the one that the proxy names.

Trusted are only proxies that the settings name: anybody can write the header X-Forwarded-For.
"""

import ipaddress
from collections.abc import Iterable, Sequence

FORWARDED_FOR = b"x-forwarded-for"


class TrustedProxies:
    """The proxies whose word is taken.

    Args:
        networks: addresses and networks, such as `10.0.0.0/8`.
    """

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]

    def trusts(self, address: str) -> bool:
        """Return whether an address is one of them; what is no address is none."""
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client(self, peer: str, forwarded: Iterable[bytes]) -> str:
        """Return the address of a request's client.

        Args:
            peer: the address of the connection.
            forwarded: the values of X-Forwarded-For, in order; each proxy adds the address that it was called from.

        Returns:
            The last address in them that no trusted proxy has; what stands before it is a claim of that client.
        """
        client = peer
        hops = [hop.strip().decode("latin-1") for value in forwarded for hop in value.split(b",")]
        while hops and self.trusts(client):
            client = hops.pop()
        return client if _is_address(client) else peer


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
