"""The closed list of reasons not to fold, each with what would make the norm foldable.

First in the flow: every other module of the package raises or records these, none invents its own. Refusing is a
normal answer here, so a refusal is data first and an exception only inside the package or in strict mode.
"""

from enum import StrEnum

from ..errors import FoldError


class RefusalCode(StrEnum):
    """Why a norm stays; the set is closed, and reports and scoreboards may count on it."""

    TRAINING = "training"
    BATCH_STATS = "batch-stats"
    LAZY = "lazy"
    UNTRACKED = "untracked"
    AXIS = "axis"
    MULTI_USE = "multi-use"
    GRAPH_OUTPUT = "graph-output"
    SHARED = "shared"
    ACTIVATION_BETWEEN = "activation-between"
    PAD = "pad"
    POOL = "pool"
    SIGN = "sign"
    QUANTISED = "quantised"
    DTYPE = "dtype"
    OVERFLOW = "overflow"
    NON_FINITE = "non-finite"
    ZERO_DENOMINATOR = "zero-denominator"
    HOOK = "hook"
    CONTROL_FLOW = "control-flow"
    OVERRIDABLE = "overridable"
    TRAINING_MODE = "training-mode"
    SPATIAL = "spatial"
    SUBGRAPH = "subgraph"
    UNKNOWN_OP = "unknown-op"
    NO_PRODUCER = "no-producer"
    UNJUDGED = "unjudged"


REMEDIES: dict[RefusalCode, str] = {
    RefusalCode.TRAINING: "call model.eval() before folding",
    RefusalCode.BATCH_STATS: "keep running statistics: they are fixed numbers, those of a batch are not",
    RefusalCode.LAZY: "run one batch through the model so that its lazy modules get their shapes",
    RefusalCode.UNTRACKED: "store the statistics as tensors of the module, so that they are constants of the graph",
    RefusalCode.AXIS: "let the norm run over the axis that the layer before it produces",
    RefusalCode.MULTI_USE: "give the norm a value of its own: nothing else may read what is rescaled; in PyTorch "
    'duplicate="allow" computes it twice where it is a layer\'s',
    RefusalCode.GRAPH_OUTPUT: "do not return the value between layer and norm",
    RefusalCode.SHARED: "give each use a layer of its own (untie the weights)",
    RefusalCode.ACTIVATION_BETWEEN: "put the norm before the activation",
    RefusalCode.PAD: 'pass padding="exact", or pad with copied values, or without padding',
    RefusalCode.POOL: "average without counting the padding (count_include_pad=False, no divisor_override)",
    RefusalCode.SIGN: "put the norm before the max pool, or keep its scale non-negative",
    RefusalCode.QUANTISED: "fold the floating-point model, then quantise",
    RefusalCode.DTYPE: "fold the float32 model, then cast it",
    RefusalCode.OVERFLOW: "fold into a wider dtype, or mend the channels whose variance is almost zero",
    RefusalCode.NON_FINITE: "mend the NaN or infinite values: the model is broken as it is",
    RefusalCode.ZERO_DENOMINATOR: "mend the variance: variance + eps must be positive",
    RefusalCode.HOOK: "remove the forward hook, or move what it does into the module",
    RefusalCode.CONTROL_FLOW: "make the path through forward independent of the values, or fold each part by itself",
    RefusalCode.OVERRIDABLE: "take the initializer out of the graph's inputs, so that callers cannot replace it",
    RefusalCode.TRAINING_MODE: "export the model in eval mode (training_mode=0, one output)",
    RefusalCode.SPATIAL: "export again with per-channel statistics (spatial=1)",
    RefusalCode.SUBGRAPH: "move layer and norm out of the If, Loop or Scan body",
    RefusalCode.UNKNOWN_OP: "put the norm next to its layer, or report the operation to us",
    RefusalCode.NO_PRODUCER: "nothing: no layer with weights stands before or after this norm",
    RefusalCode.UNJUDGED: "let the outputs depend on the inputs alone, finite and neither empty nor all equal",
}


class Refusal(FoldError):  # noqa: N818 -- a verdict, recorded far more often than raised
    """A norm cannot be folded exactly: which of the closed list it is, and the facts of this case."""

    def __init__(self, code: RefusalCode, reason: str, remedy: str | None = None):
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.remedy = remedy or REMEDIES[code]
