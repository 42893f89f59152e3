"""Photographs by what most people would write: FastAPI, Pillow, torchvision's transforms, a run in the thread pool."""

from fastapi import Depends, FastAPI, Request

from benchmarks.serving.peers.photograph_session import classify, open_session, pixels

app = FastAPI()
session = open_session()


async def body(request: Request) -> bytes:
    """Read the file."""
    return await request.body()


@app.post("/predict")
def predict(file: bytes = Depends(body)) -> dict[str, list[dict[str, float]]]:
    """Classify one picture, in a thread: decoding and the run let others have the interpreter."""
    return {"predictions": classify(session, pixels(file))}
