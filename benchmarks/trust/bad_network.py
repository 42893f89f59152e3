"""R30: a network that loses packets and takes long, between two network namespaces of this machine.

Packets go from one namespace to the other through two tun devices and a thread here, which holds each of them for a
while and drops some: what tc netem does, on kernels that have none. Needs root.

    python -m benchmarks.trust.bad_network ADDRESS SECONDS MODEL    ask from within a namespace; prints JSON
"""

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.serving.servers import golden, newest_model
from benchmarks.trust.row import Bench, Measured, Row
from benchmarks.trust.unasked import Unasked

LOSS = 0.05
ONE_WAY_SECONDS = 0.1
CLIENTS = 64
MOST_FAILED = 0.001  # such as one whose connection the system itself gave up
HOSTS = {"service": "10.213.0.1", "clients": "10.213.0.2"}
_SET_DEVICE, _TUN, _PLAIN = 0x400454CA, 0x0001, 0x1000  # of <linux/if_tun.h>
_PACKET = 65_536


class Relay(threading.Thread):
    """Carries packets between two tun devices, late, and not all of them."""

    def __init__(self, devices: tuple[int, int]) -> None:
        super().__init__(daemon=True)
        self._other = {devices[0]: devices[1], devices[1]: devices[0]}
        self._late: list[tuple[float, int, int, bytes]] = []
        self.is_over = threading.Event()
        self.carried = self.dropped = 0

    def run(self) -> None:
        """Carry until it is over."""
        chance = random.Random(30)
        while not self.is_over.is_set():
            now = time.perf_counter()
            while self._late and self._late[0][0] <= now:
                _, _, device, packet = heapq.heappop(self._late)
                with contextlib.suppress(OSError):
                    os.write(device, packet)
            patience = min(0.05, self._late[0][0] - now) if self._late else 0.05
            for device in select.select(list(self._other), [], [], max(0.0, patience))[0]:
                packet = os.read(device, _PACKET)
                if chance.random() < LOSS:
                    self.dropped += 1
                    continue
                self.carried += 1
                entry = (time.perf_counter() + ONE_WAY_SECONDS, self.carried, self._other[device], packet)
                heapq.heappush(self._late, entry)


@contextlib.contextmanager
def two_namespaces() -> Iterator[tuple[dict[str, str], Relay]]:
    """Yield the names of the namespaces of service and clients, and what is between them."""
    names = {role: f"trust-{os.getpid()}-{role}" for role in HOSTS}
    devices: list[int] = []
    try:
        for number, (role, name) in enumerate(names.items()):
            device = f"trust{number}"
            run("ip", "netns", "add", name)
            devices.append(tun(device))
            run("ip", "link", "set", device, "netns", name)
            for words in (f"addr add {HOSTS[role]}/24 dev {device}", f"link set {device} up", "link set lo up"):
                run("ip", "-n", name, *words.split())
        relay = Relay((devices[0], devices[1]))
        relay.start()
        yield names, relay
        relay.is_over.set()
        relay.join()
    finally:
        for device_file in devices:
            os.close(device_file)
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def run(*words: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(words, check=True, capture_output=True)


def tun(name: str) -> int:
    """Return the descriptor of a new tun device."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _SET_DEVICE, struct.pack("16sH22x", name.encode(), _TUN | _PLAIN))
    return device


def bad_network(bench: Bench) -> Measured:
    """R30: all clients ask over that network; then it is asked without it, and nothing of them is left."""
    with two_namespaces() as (names, relay):
        into = ("ip", "netns", "exec")
        flags = f"--host {HOSTS['service']}"
        with Unasked(bench, str(bench.models), flags, prefix=(*into, names["service"])) as service:
            address = f"{HOSTS['service']}:{service.port}"
            model = str(newest_model(bench.models))

            def ask_from(role: str, seconds: float, clients: int) -> dict[str, Any]:
                words = (
                    sys.executable,
                    "-m",
                    "benchmarks.trust.bad_network",
                    address,
                    str(seconds),
                    model,
                    str(clients),
                )
                done = subprocess.run(
                    [*into, names[role], *words], cwd=ROOT, capture_output=True, text=True, timeout=240
                )
                found: dict[str, Any] = json.loads(done.stdout or f'{{"failure": "{done.stderr[-80:]}"}}')
                return found

            far = ask_from("clients", 5 * bench.seconds, CLIENTS)
            near = ask_from("service", 0.5, 1)
    words = f"{far['right']} right, {far['wrong']} wrong, {far['failed']} failed ({far['first']})"
    words = f"{words}, {far['p50_ms']:.0f} ms at the median"
    words = f"{words}; {relay.dropped} of {relay.dropped + relay.carried} packets lost; then without it "
    words = f"{words}{near['right']} right, {near['wrong'] + near['failed']} not, {near['queued']:.0f} rows wait"
    is_far = (
        not far["wrong"]
        and far["failed"] <= MOST_FAILED * far["right"]
        and far["right"] > CLIENTS
        and far["p50_ms"] >= 150
    )
    is_near = near["right"] > 0 and not near["wrong"] and not near["failed"] and not near["queued"]
    return Measured(words, is_far and is_near and relay.dropped > 100)


def ask_long(address: str, seconds: float, model: Path, clients: int) -> dict[str, Any]:
    """Ask for the golden images again and again over kept connections; what came of it."""
    images = golden(model, "inputs", "image")
    right = golden(model, "outputs", "probabilities")
    until = time.perf_counter() + seconds

    def client(first: int) -> tuple[list[bool], list[float], list[str]]:
        answers, times, failed, number = [], [], list[str](), first
        connection = HTTPConnection(address, timeout=60)
        while time.perf_counter() < until:
            number = (number + 1) % len(images)
            began = time.perf_counter()
            try:
                connection.request("POST", "/predict", images[number].tobytes(), OCTETS)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, HTTPException) as err:
                failed.append(repr(err))
                connection.close()
            else:
                if answer.status == 200:
                    (row,) = json.loads(text)["predictions"]
                    answers.append(np.allclose(row["probabilities"], right[number], atol=1e-4))
                else:
                    failed.append(f"{answer.status} {text[:80].decode()}")
            times.append(time.perf_counter() - began)
        connection.close()
        return answers, times, failed

    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(client, range(clients)))
    answers = [answer for one, _, _ in found for answer in one]
    times = sorted(spent for _, one, _ in found for spent in one)
    failed = [reason for _, _, reasons in found for reason in reasons]
    return {
        "right": sum(answers),
        "wrong": len(answers) - sum(answers),
        "failed": len(failed),
        "first": (failed or ["none"])[0],
        "p50_ms": times[len(times) // 2] * 1e3,
        "queued": queued_rows(address),
    }


def queued_rows(address: str) -> float:
    """Rows that wait, as the service says."""
    connection = HTTPConnection(address, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("foldserve_queued_rows"))


OCTETS = {"Content-Type": "application/octet-stream"}
ROWS = [
    Row(
        "R30",
        "a bad network",
        "5 % of packets lost, 200 ms there and back: 0 wrong, 0.1 % failed at most, nothing waits afterwards",
        bad_network,
        change="lying-once-ready",
        part=13,
    )
]

if __name__ == "__main__":
    where, span, file, count = sys.argv[1:]
    print(json.dumps(ask_long(where, float(span), Path(file), int(count))))
