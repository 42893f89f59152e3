"""Outputs of a model -> the bytes of an answer to `POST /predict`.

Pure functions, the counterpart of `predict_body`: no request, no framework.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import EngineError


def predictions_json(
    model: str, version: int, class_names: Sequence[str], outputs: Mapping[str, NDArray[np.generic]]
) -> bytes:
    """Return the answer for n images as JSON.

    Args:
        model: its name.
        version: the version that gave the outputs.
        class_names: index = class id.
        outputs: "probabilities" float32 (n, classes) and "class_id" int64 (n, 1).

    Raises:
        EngineError: a probability is not a finite number; JSON cannot hold it.
    """
    probabilities = np.ascontiguousarray(outputs["probabilities"])
    if not np.isfinite(probabilities).all():
        raise EngineError(f"model {model!r} gave probabilities that are not finite numbers")
    class_ids = outputs["class_id"].ravel().tolist()
    predictions = [
        {"class_id": class_id, "label": class_names[class_id], "confidence": row[class_id], "probabilities": row}
        for class_id, row in zip(class_ids, probabilities, strict=True)
    ]
    answer = {"model": model, "version": version, "predictions": predictions}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)  # the shortest digits that give the same float32
