"""What most people would write: FastAPI, one session a worker, one run a request."""

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel

from benchmarks.serving.peers.session import classify, open_session

app = FastAPI()
session = open_session()


class Instances(BaseModel):
    """Images as flat lists."""

    instances: list[list[int]]


class Prediction(BaseModel):
    """What the model says of one image."""

    class_id: int
    probabilities: list[float]


class Predictions(BaseModel):
    """One prediction an image."""

    predictions: list[Prediction]


@app.post("/raw")
async def raw(request: Request) -> Predictions:
    """Classify raw bytes."""
    images = np.frombuffer(await request.body(), np.uint8).reshape(-1, 1, 28, 28)
    return Predictions(predictions=classify(session, images))


@app.post("/json")
async def json(body: Instances) -> Predictions:
    """Classify JSON."""
    images = np.array(body.instances, np.uint8).reshape(-1, 1, 28, 28)
    return Predictions(predictions=classify(session, images))
