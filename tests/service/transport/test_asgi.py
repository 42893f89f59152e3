"""What is used of uvicorn and is not its public interface: a release that changes it turns this red, by name."""

import ast
import inspect
import re

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from foldserve.service.transport import asgi, connection
from foldserve.service.transport.flow import Flow


def attributes_of(variable: str) -> set[str]:
    """Which attributes of something the room uses, read from its source."""
    used = set()
    for module in (asgi, connection):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] == variable:
                used.add(node.attr)
    return used


def cycle() -> RequestResponseCycle:
    """A cycle of nothing."""
    arguments = dict.fromkeys(inspect.signature(RequestResponseCycle).parameters)
    return RequestResponseCycle(**arguments)


def test_the_cycle_takes_what_it_is_given():
    """One more or one fewer argument would fail only once a request arrives."""
    (call,) = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(asgi)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "RequestResponseCycle"
    )
    given = {keyword.arg for keyword in call.keywords}
    assert given == set(inspect.signature(RequestResponseCycle).parameters)


def test_the_cycle_has_what_is_used_of_it():
    """Names that a new release drops or renames would be set on it and change nothing."""
    used = attributes_of("cycle") | attributes_of("_cycle")
    assert used == {
        "body", "disconnected", "keep_alive", "message_event", "more_body", "response_complete", "response_started",
        "run_asgi",
    }  # fmt: skip
    assert used <= set(dir(cycle()))


def test_the_cycle_finds_what_it_uses():
    """It takes objects of ours for its transport and its flow control: every method that it calls is there."""
    source = inspect.getsource(RequestResponseCycle)
    for name, ours in (("transport", asgi.Application), ("flow", Flow)):
        called = set(re.findall(rf"self\.{name}\.(\w+)", source))
        assert called
        assert called <= set(dir(ours)), name


def test_the_server_has_what_is_used_of_it():
    """Counts and lists of the server are kept by its connections."""
    assert attributes_of("state") <= set(dir(ServerState()))
    config = Config(lambda scope, receive, send: None)
    config.load()
    assert attributes_of("config") == {"asgi_version", "loaded_app", "timeout_keep_alive"}
    assert attributes_of("config") <= set(dir(config))
