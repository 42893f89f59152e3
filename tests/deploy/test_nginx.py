"""The TLS recipe in `deploy/nginx.conf`: nginx runs with it as it stands, but for ports, names and folders."""

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.support import artifacts, processes

RECIPE = Path(__file__).parents[2] / "deploy/nginx.conf"
NAME = "api.example.org"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx: apt-get install nginx-light"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def certificate(folder: Path) -> None:
    """A certificate that signs itself, for the name in the recipe."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt"), "-days", "2"]
    command += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)


def configured(folder: Path, ports: dict[str, int]) -> Path:
    """The recipe with the ports of this test, its certificate, and nginx's own folders within `folder`."""
    text = RECIPE.read_text()
    for given, here in {
        "listen 8443": f"listen 127.0.0.1:{ports['https']}",
        "listen 8444": f"listen 127.0.0.1:{ports['grpcs']}",
        "127.0.0.1:8000": f"127.0.0.1:{ports['http']}",
        "127.0.0.1:8001": f"127.0.0.1:{ports['grpc']}",
        "/etc/foldserve": str(folder),
    }.items():
        assert given in text, f"{given!r} is not in the recipe any more"
        text = text.replace(given, here)
    own = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {\n", f"http {{\n{own}", 1)
    path = folder / "nginx.conf"
    path.write_text(f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\ndaemon off;\nuser root;\n{text}")
    return path


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A service behind nginx."""
    pytest.importorskip("grpc", reason="needs the extra grpc")
    folder = tmp_path_factory.mktemp("nginx")
    artifacts.publish_classifier(folder / "models")
    certificate(folder)
    ports = {name: free_port() for name in ("https", "grpcs", "grpc")}
    flags = ["--models-dir", str(folder / "models"), "--grpc-port", str(ports["grpc"]), "--allowed-hosts", NAME]
    with processes.started(*flags, "--trusted-proxies", "127.0.0.1") as (_, address):
        ports["http"] = int(address.rsplit(":", 1)[1])
        nginx = subprocess.Popen(["nginx", "-c", str(configured(folder, ports))], stderr=subprocess.PIPE)
        try:
            until = time.monotonic() + 10
            while not is_open(ports["https"]):
                assert nginx.poll() is None, nginx.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.02)
            yield SimpleNamespace(folder=folder, **ports)
        finally:
            nginx.terminate()
            nginx.wait(10)
            nginx.stderr.close()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def https(proxy) -> Iterator[httpx.Client]:
    """A client that trusts the certificate, and nothing else."""
    context = ssl.create_default_context(cafile=str(proxy.folder / "tls.crt"))
    with httpx.Client(base_url=f"https://127.0.0.1:{proxy.https}", verify=context, headers={"Host": NAME}) as http:
        yield http


def test_http_is_answered_through_tls(https):
    """Pictures go in and predictions come out, and the connection to the service serves the next one too."""
    pixels = artifacts.images(3)
    for _ in range(3):
        answer = https.post("/predict", content=pixels.tobytes(), headers=processes.OCTETS)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["predictions"]) == 3


def test_refusals_come_through_as_they_are(https):
    """Status, sentence and headers are the service's own."""
    answer = https.post("/predict", content=b"x", headers=processes.OCTETS)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert answer.headers["x-request-id"]


def test_what_changes_models_stays_inside(https):
    """Calls of the repository and metrics do not pass the proxy."""
    assert https.post("/v2/repository/models/fashion/load").status_code == 403
    assert https.get("/metrics").status_code == 403
    assert https.get("/v2/health/ready").status_code == 200


def test_a_body_over_the_limit_is_refused(https):
    """The proxy stops what is larger than the service takes."""
    assert https.post("/predict", content=bytes(65 << 20), headers=processes.OCTETS).status_code == 413


def test_smuggled_framings_do_not_pass(proxy):
    """A request with both length and chunks reaches no second answer."""
    context = ssl.create_default_context(cafile=str(proxy.folder / "tls.crt"))
    with (
        socket.create_connection(("127.0.0.1", proxy.https), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        head = f"POST /predict HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        got = b""
        while piece := connection.recv(65_536):
            got += piece
    assert got.startswith(b"HTTP/1.1 400")
    assert got.count(b"HTTP/1.1 ") == 1


def test_grpc_is_answered_through_tls(proxy):
    """The same model over gRPC, with the certificate's name."""
    import grpc

    from tests.support import grpc_calls

    credentials = grpc.ssl_channel_credentials((proxy.folder / "tls.crt").read_bytes())
    options = [("grpc.ssl_target_name_override", NAME)]
    with grpc.secure_channel(f"127.0.0.1:{proxy.grpcs}", credentials, options) as channel:
        stubs = grpc_calls.stubs(channel)
        answer = stubs.ModelInfer(grpc_calls.request(), timeout=10)
        assert len(answer.raw_output_contents[0]) > 0
        with pytest.raises(grpc.RpcError) as refused:
            stubs.ModelInfer(grpc_calls.request(model="none"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
