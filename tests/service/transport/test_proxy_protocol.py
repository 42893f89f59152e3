"""What a proxy says before the first request, and whose word is taken."""

import logging
import socket
import struct

import pytest

from foldserve.service.app import create_app
from foldserve.service.errors import InvalidInput
from foldserve.service.settings import Settings
from foldserve.service.transport.proxy_protocol import ProxyHeader
from tests.support.live import serve

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1") + struct.pack("!HH", 4711, 443)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack("!HH", 4711, 443)


def binary(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


HEADERS = {
    "text": (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n", "192.0.2.7"),
    "text of IPv6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", "2001:db8::7"),
    "text of a proxy's own": (b"PROXY UNKNOWN\r\n", None),
    "text of unknown addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    "binary": (binary(0x21, 0x11, V4), "192.0.2.7"),
    "binary with more behind it": (binary(0x21, 0x11, V4 + b"\x04\x00\x01x"), "192.0.2.7"),
    "binary of IPv6": (binary(0x21, 0x21, V6), "2001:db8::7"),
    "binary of a proxy's own": (binary(0x20, 0x00, b""), None),
    "binary of a proxy's own, with addresses": (binary(0x20, 0x11, V4), None),
    "binary of another family": (binary(0x21, 0x31, bytes(216)), None),
    "none": (b"", None),
}
REQUESTS = (b"POST /predict HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\nGET / HTTP/1.1\r\n", b"\xff\xff")


@pytest.mark.parametrize("request_bytes", REQUESTS)
@pytest.mark.parametrize(("header", "address"), HEADERS.values(), ids=HEADERS)
def test_a_header_is_taken_wherever_it_is_cut(header, address, request_bytes):
    """And what follows it is left as it is."""
    whole = header + request_bytes
    for cut in range(len(whole) + 1):
        taken = ProxyHeader()
        first = taken.feed(whole[:cut])
        rest = taken.feed(whole[cut:]) if first is None else first + whole[cut:]
        assert rest == request_bytes
        assert taken.address == address


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY \r\n", b"PROXY TCP4\r\n", b"PROXY TCP4 x 192.0.2.1 1 2\r\n", b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
        b"PROXY TCP9 192.0.2.7 192.0.2.1 1 2\r\n", b"PROXY " + b"x" * 200, binary(0x11, 0x11, V4),
        binary(0x22, 0x11, V4), binary(0x21, 0x11, V4[:11]), binary(0x21, 0x21, V4), binary(0x21, 0x11, bytes(3_000)),
    ],
)  # fmt: skip
def test_a_broken_header_is_refused(header):
    """It is no request, and must not be read as one."""
    with pytest.raises(InvalidInput, match="PROXY protocol"):
        ProxyHeader().feed(header)


def asked(url: str, header: bytes, more: bytes = b"") -> bytes:
    """The answer to a request behind a header, each sent by itself."""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20) as client:
        client.sendall(header)
        client.sendall(b"GET /v2/models/fashion HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + more + b"\r\n")
        got = b""
        while piece := client.recv(65_536):
            got += piece
        return got


def test_a_trusted_proxy_names_the_client(fashion, caplog):
    """The access log has the address; what the client itself says of one is not believed."""
    caplog.set_level(logging.INFO, "foldserve.access")
    settings = Settings(models_dir=fashion, provider="cpu", access_log_rate=1000, trusted_proxies=("127.0.0.1",))
    lie = b"X-Forwarded-For: 198.51.100.1\r\n"
    with serve(create_app(settings)) as url:
        for header in (HEADERS["text"][0], HEADERS["binary"][0]):
            assert asked(url, header, lie).startswith(b"HTTP/1.1 200")
        assert asked(url, b"").startswith(b"HTTP/1.1 200")
        assert asked(url, HEADERS["binary of a proxy's own"][0], lie).startswith(b"HTTP/1.1 200")
        assert asked(url, b"PROXY TCP4 x\r\n").startswith(b"HTTP/1.1 400")
    told = [record.address for record in caplog.records if record.name == "foldserve.access"]
    assert told == ["192.0.2.7", "192.0.2.7", "127.0.0.1", "198.51.100.1"]


def test_nobody_else_does(fashion):
    """From any other address such bytes are a request, and a broken one."""
    with serve(create_app(Settings(models_dir=fashion, provider="cpu"))) as url:
        for header, _ in HEADERS.values():
            if header:
                assert asked(url, header).startswith(b"HTTP/1.1 400")


def test_a_client_behind_a_proxy_has_its_own_share_of_connections(fashion):
    """One client cannot take the places of the others, though all of them come from the proxy's address."""
    limits = {"max_connections_per_address": 2, "trusted_proxies": ("127.0.0.1",)}
    with serve(create_app(Settings(models_dir=fashion, provider="cpu", **limits))) as url:
        kept = []
        try:
            for _ in range(2):
                client = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20)
                kept.append(client)
                client.sendall(HEADERS["text"][0] + b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(65_536).startswith(b"HTTP/1.1 200")
            assert asked(url, HEADERS["text"][0]).startswith(b"HTTP/1.1 503")
            assert asked(url, b"PROXY TCP4 192.0.2.8 192.0.2.1 1 2\r\n").startswith(b"HTTP/1.1 200")
        finally:
            for client in kept:
                client.close()
        assert asked(url, HEADERS["text"][0]).startswith(b"HTTP/1.1 200")
