"""A program that serves by `foldserve.ray` and does what lines of JSON tell it; it runs where Ray is installed.

`python -m tests.support.ray_application PORT`: each line on standard input is answered by one on standard output.
"""

import asyncio
import json
import os
import sys
from typing import Any

from foldserve.ray.command import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import numpy as np
import ray
from ray import serve

import foldserve.ray

NAME = foldserve.ray.NAME
loop = asyncio.new_event_loop()  # a handle belongs to one loop


def run(models: str, **options: Any) -> str:
    """Serve, or replace what is served by a newer application."""
    serve.run(foldserve.ray.build({"models_dir": models, **options}), name=NAME)
    return "ready"


def replicas() -> dict[str, int]:
    """How many replicas are in each state."""
    return {
        str(getattr(state, "value", state)): count
        for state, count in serve.status().applications[NAME].deployments[NAME].replica_states.items()
    }


def infer(model: str | None, name: str, values: list[Any], dtype: str = "uint8", **options: Any) -> dict[str, Any]:
    """Ask by a handle."""

    async def ask() -> Any:
        return await serve.get_app_handle(NAME).infer.remote(model, {name: np.array(values, dtype)}, **options)

    try:
        outputs = loop.run_until_complete(ask())
    except Exception as err:
        return {"error": str(err).strip().splitlines()[-1]}
    return {output: array.tolist() for output, array in outputs.items()}


def main() -> None:
    """Do what is told until standard input ends."""
    ray.init(include_dashboard=False, logging_level="error", num_cpus=4, log_to_driver=False)
    serve.start(http_options={"host": "0.0.0.0", "port": int(sys.argv[1])})
    orders = {"run": run, "replicas": replicas, "infer": infer}
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(orders[order.pop("do")](**order)), flush=True)
    serve.shutdown()
    ray.shutdown()


main()
