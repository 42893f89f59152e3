"""Two instances behind HAProxy and nginx, with the recipes as they stand: restarted under load, no request is lost.

Instances are told to end (SIGTERM) or die (SIGKILL) one after the other, and come back on the same port, while clients
ask without a pause. HAProxy asks for ready; nginx, which has no active checks, learns from what fails.
"""

import contextlib
import http.client
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.deploy.test_nginx import NAME, certificate, free_port, is_open
from tests.support import artifacts, processes
from tests.support.load import Load, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
RESTARTS = int(os.environ.get("RESTARTS", "6"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CLUSTER_TOOLS" not in os.environ, reason="takes a minute: make cluster-test"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl"),
]


class Instance:
    """One service on a port of its own, that can be ended and started again."""

    def __init__(self, models: Path, *flags: str) -> None:
        self.http, self.grpc = free_port(), free_port()
        self._flags = ["--models-dir", str(models), "--port", str(self.http), "--grpc-port", str(self.grpc)]
        self._flags += ["--allowed-hosts", NAME, "--trusted-proxies", "127.0.0.1", "--leave-seconds", "2", *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self._process = subprocess.Popen(
            processes.command(*self._flags), stderr=subprocess.DEVNULL, env=processes.environment()
        )
        wait_until(self.is_ready, 60)

    def is_ready(self) -> bool:
        return self._get("/v2/health/ready")[0] == 200

    def has_answered(self) -> bool:
        """Whether a request of a client has come here."""
        return b'foldserve_rows_total{model="fashion"}' in self._get("/metrics")[1].replace(b"} 0.0", b"")

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def end(self, number: int) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self._process.send_signal(number)
        return self._process.wait(60)


def replaced(text: str, changes: dict[str, str]) -> str:
    """A recipe with the ports and folders of this test."""
    for given, here in changes.items():
        assert given in text, f"{given!r} is not in the recipe any more"
        text = text.replace(given, here)
    return text


def haproxy(folder: Path, port: int, a: Instance, b: Instance) -> list[str]:
    (folder / "tls.pem").write_text((folder / "tls.crt").read_text() + (folder / "tls.key").read_text())
    text = (DEPLOY / "haproxy.cfg").read_text()
    for given, here in {":8443": f"127.0.0.1:{port}", "/etc/foldserve": str(folder)}.items():
        text = replaced(text, {given: here})
    ports = {"8000": a.http, "8010": b.http, "8001": a.grpc, "8011": b.grpc}
    for given, here in ports.items():
        text = replaced(text, {f"127.0.0.1:{given}": f"127.0.0.1:<{here}>"})
    for given in ("8000", "8010"):
        text = text.replace(f"port {given}", f"port {ports[given]}")
    (folder / "haproxy.cfg").write_text(text.replace("<", "").replace(">", ""))
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


def nginx(folder: Path, port: int, a: Instance, b: Instance) -> list[str]:
    rest = " max_fails=1 fail_timeout=2s;"
    servers = {f"server 127.0.0.1:{given}{rest}": "".join(f"server 127.0.0.1:{one}{rest}" for one in both)
               for given, both in {"8000": (a.http, b.http), "8001": (a.grpc, b.grpc)}.items()}  # fmt: skip
    places = {"listen 8443": f"listen 127.0.0.1:{port}", "listen 8444": f"listen 127.0.0.1:{free_port()}"}
    text = replaced((DEPLOY / "nginx.conf").read_text(), {**servers, **places, "/etc/foldserve": str(folder)})
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    text = text.replace("http {\n", f"http {{\n{own}", 1)
    head = f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\ndaemon off;\nuser root;\n"
    (folder / "nginx.conf").write_text(head + text)
    return ["nginx", "-c", str(folder / "nginx.conf")]


PROXIES = {"haproxy": haproxy, "nginx": nginx}


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[tuple[Instance, Instance]]:
    """Two instances that serve the same models."""
    artifacts.publish_classifier(tmp_path / "models")
    both = Instance(tmp_path / "models"), Instance(tmp_path / "models")
    try:
        for instance in both:
            instance.start()
        yield both
    finally:
        for instance in both:
            with contextlib.suppress(Exception):
                instance.end(signal.SIGKILL)


@contextlib.contextmanager
def running(name: str, folder: Path, instances: tuple[Instance, Instance]) -> Iterator[int]:
    """A proxy with its recipe before both instances; its port."""
    if not shutil.which(name):
        pytest.skip(f"needs {name}")
    certificate(folder)
    port = free_port()
    proxy = subprocess.Popen(PROXIES[name](folder, port, *instances), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: proxy.poll() is not None or is_open(port))
        assert proxy.poll() is None, proxy.stderr.read()
        yield port
    finally:
        proxy.terminate()
        proxy.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", PROXIES)
def test_no_request_is_lost_while_instances_are_restarted(name, number, instances, tmp_path):
    """Each in turn; the other one answers meanwhile, and both have answered at the end."""
    with (
        running(name, tmp_path, instances) as port,
        Load(port, ssl.create_default_context(cafile=str(tmp_path / "tls.crt")), host=NAME, is_split=True) as load,
    ):
        wait_until(lambda: all(instance.has_answered() for instance in instances))
        for turn in range(RESTARTS):
            before = load.answered
            code = instances[turn % 2].end(number)
            assert code == (0 if number == signal.SIGTERM else -number)
            instances[turn % 2].start()
            wait_until(instances[turn % 2].has_answered)  # the proxy sends to it again, and the other one can go
            assert load.answered > before
    print(f"\n{name} {number.name}: {len(load.lost)} lost of {load.asked}, {RESTARTS} restarts")
    assert load.lost == []


def test_haproxy_takes_the_recipe_and_warns_of_nothing(instances, tmp_path):
    """Its own check of the file, TLS and all."""
    if not shutil.which("haproxy"):
        pytest.skip("needs haproxy")
    certificate(tmp_path)
    command = haproxy(tmp_path, free_port(), *instances)
    done = subprocess.run([*command, "-c"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "WARNING" not in done.stderr, done.stderr


def test_haproxy_passes_what_it_should(instances, tmp_path):
    """gRPC comes through, what changes models does not, and the client's address is the client's."""
    grpc = pytest.importorskip("grpc")
    from tests.support import grpc_calls

    with running("haproxy", tmp_path, instances) as port:
        context = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))

        def status(method: str, path: str, **headers: str) -> int:
            with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, context=context)) as connection:
                connection.request(method, path, headers={"Host": NAME, **processes.OCTETS, **headers})
                return connection.getresponse().status

        wait_until(lambda: status("GET", "/v2/health/ready") == 200)
        assert status("POST", "/v2/repository/models/fashion/load") == 403
        assert status("GET", "/metrics") == 403
        assert status("POST", "/predict", **{"Content-Length": str(65 << 20)}) == 413
        credentials = grpc.ssl_channel_credentials((tmp_path / "tls.crt").read_bytes())
        options = [("grpc.ssl_target_name_override", NAME)]
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            stubs = grpc_calls.stubs(channel)
            answer = stubs.ModelInfer(grpc_calls.request(), timeout=10)
            assert len(answer.raw_output_contents[0]) > 0


# The recipe of a proxy, with changes: it calls from an address of its own, which is the only one that is trusted.
HTTP, GRPC = r"(server [ab] 127.0.0.1:\d+)$", r"(server [ab] 127.0.0.1:\d+) port"
NAMING = {
    "haproxy, X-Forwarded-For": ("haproxy", {HTTP: r"\1 source 127.0.0.3", GRPC: r"\1 source 127.0.0.3 port"}),
    "haproxy, PROXY 1": ("haproxy", {HTTP: r"\1 source 127.0.0.3 send-proxy", GRPC: r"\1 source 127.0.0.3 port"}),
    "haproxy, PROXY 2": ("haproxy", {HTTP: r"\1 source 127.0.0.3 send-proxy-v2", GRPC: r"\1 source 127.0.0.3 port"}),
    "nginx, X-Forwarded-For": ("nginx", {r"(proxy|grpc)_read_timeout": r"\1_bind 127.0.0.3; \1_read_timeout"}),
}


@pytest.mark.parametrize("naming", NAMING)
def test_the_address_of_a_client_is_the_clients(naming, tmp_path):
    """Over HTTP and gRPC, by what the proxy says; what the client says of itself is not believed."""
    grpc = pytest.importorskip("grpc")
    from tests.support import grpc_calls

    name, changes = NAMING[naming]
    if not shutil.which(name):
        pytest.skip(f"needs {name}")
    artifacts.publish_classifier(tmp_path / "models")
    certificate(tmp_path)
    port, inside = free_port(), free_port()
    flags = ["--models-dir", str(tmp_path / "models"), "--grpc-port", str(inside), "--allowed-hosts", NAME]
    flags += ["--trusted-proxies", "127.0.0.3", "--access-log-rate", "1000"]
    with processes.started(*flags) as (service, address):
        both = SimpleNamespace(http=int(address.rsplit(":", 1)[1]), grpc=inside)
        command = PROXIES[name](tmp_path, port, both, both)
        file = Path(command[-1])
        text = file.read_text()
        for pattern, here in changes.items():
            text, count = re.subn(pattern, here, text, flags=re.MULTILINE)
            assert count, pattern
        file.write_text(text)
        proxy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            wait_until(lambda: proxy.poll() is not None or is_open(port))
            assert proxy.poll() is None, proxy.stderr.read()
            context = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
            route = "/v2/models/{model}"

            def status() -> int:
                with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, context=context)) as client:
                    lie = {"X-Forwarded-For": "198.51.100.9", "Host": NAME}
                    client.request("GET", "/v2/models/fashion", headers=lie)
                    return client.getresponse().status

            wait_until(lambda: status() == 200)
            assert processes.read_until(service, "access", route=route)["address"] == "127.0.0.1"
            credentials = grpc.ssl_channel_credentials((tmp_path / "tls.crt").read_bytes())
            grpc_port = int(re.findall(r"listen 127.0.0.1:(\d+) ssl", text)[1]) if name == "nginx" else port
            options = [("grpc.ssl_target_name_override", NAME)]
            lie = [("x-forwarded-for", "198.51.100.9")]
            with grpc.secure_channel(f"127.0.0.1:{grpc_port}", credentials, options) as channel:
                grpc_calls.stubs(channel).ModelInfer(grpc_calls.request(), timeout=20, metadata=lie)
            route = "/inference.GRPCInferenceService/ModelInfer"
            assert processes.read_until(service, "access", route=route)["address"] == "127.0.0.1"
        finally:
            proxy.terminate()
            proxy.communicate(timeout=20)
