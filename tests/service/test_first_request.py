"""The first request of each kind holds the event loop no longer than those after it."""

from fastapi.routing import APIRoute

from foldserve.service.app import create_app
from foldserve.service.settings import Settings


def test_every_route_is_built_before_the_first_request(models):
    """A router that is included builds its routes once more when a request first comes by, on the loop: 60 ms."""
    routes = create_app(Settings(models_dir=models)).routes
    paths = {route.path for route in routes if isinstance(route, APIRoute)}
    assert {"/predict", "/v2/models/{model}/infer", "/v2/repository/index", "/v1/models", "/ping"} <= paths
    assert [type(route).__name__ for route in routes if not hasattr(route, "path")] == []
