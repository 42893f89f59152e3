"""What can go wrong on the way from data to a published model, one class for each kind of remedy.

    TrainingError
    ├── Interrupted      Ctrl-C, with the way to continue
    ├── ConfigError      a hyperparameter or a flag cannot be used as given
    ├── DatasetError     the data is missing, or is not Fashion-MNIST
    ├── DeviceError      the device that --device names is not there
    ├── DivergenceError  the loss became NaN or infinite
    ├── NetworkError     the network failed, or memory ran out, while it was trained
    ├── RankError        another process of a training on several ended, or does not answer
    ├── CheckpointError  a checkpoint cannot be read, or belongs to another run
    ├── FoldError        a normalisation cannot be folded exactly
    ├── ExportError      the graph could not be written as ONNX
    ├── VerifyError      two forms of the network do not agree
    │   └── CannotJudge  a comparison of two networks says nothing: neither equal nor different
    ├── GateError        a figure is not what it has to be: a study's gate, an accuracy not worth serving
    └── ArtifactError    the version folder cannot be written or read

Every message says what was given, what was expected and what to do. The command line prints the message alone and
ends with exit code 2 for what the caller can mend (`ConfigError`, `DatasetError`, `DeviceError`), with 130 after Ctrl-C
and with 1 otherwise.
"""

from foldserve.exit_codes import FAILED, INTERRUPTED, USAGE


class TrainingError(Exception):
    """Base of everything that `training` raises on purpose."""

    exit_code = FAILED


class Interrupted(TrainingError):  # noqa: N818 - no error: Ctrl-C was pressed
    """The training was stopped by Ctrl-C and can be resumed."""

    exit_code = INTERRUPTED


class ConfigError(TrainingError):
    """A hyperparameter or a flag cannot be used as given."""

    exit_code = USAGE


class DatasetError(TrainingError):
    """The data is missing, could not be written, or is not Fashion-MNIST."""

    exit_code = USAGE


class DeviceError(TrainingError):
    """The device that --device names is not there."""

    exit_code = USAGE


class DivergenceError(TrainingError):
    """The loss became NaN or infinite."""


class NetworkError(TrainingError):
    """The network of the user raised something, or memory ran out, while it was trained or proved."""


class RankError(TrainingError):
    """Another process of a training on several ended, or does not answer."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be read, or belongs to another architecture or a finished run."""


class FoldError(TrainingError):
    """A normalisation cannot be folded exactly, or the proof of a fold failed."""


class ExportError(TrainingError):
    """The graph could not be written as ONNX, or what was written is not the network."""


class VerifyError(TrainingError):
    """Two forms of the network do not agree within the stated tolerance."""


class CannotJudge(VerifyError):  # noqa: N818 -- a verdict: neither equal nor different
    """A comparison of two networks says nothing, such as one of outputs that are random, empty or all NaN.

    Attributes:
        node: where it is: an output, or the operation that gives another result each time.
        outputs: the numbers of the outputs that it concerns.
    """

    def __init__(self, message: str, node: str, outputs: tuple[int, ...] = ()):
        super().__init__(message)
        self.node = node
        self.outputs = outputs


class GateError(TrainingError):
    """A figure is not what it has to be: a gate of a study failed, or a model is not worth serving."""


class ArtifactError(TrainingError):
    """The version folder cannot be written or read as a whole."""
