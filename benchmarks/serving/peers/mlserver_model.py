"""MLServer: a custom runtime in its V2 JSON protocol; batching as its settings file says."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving.peers.session import open_session


class Classifier(MLModel):
    """The model as MLServer's users would wrap it."""

    async def load(self) -> bool:
        """Open the model."""
        self.session = open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify a batch."""
        images = NumpyCodec.decode_input(payload.inputs[0]).astype("uint8").reshape(-1, 1, 28, 28)
        probabilities, class_id = self.session.run(["probabilities", "class_id"], {"image": images})
        outputs = [
            NumpyCodec.encode_output("probabilities", probabilities),
            NumpyCodec.encode_output("class_id", class_id),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
