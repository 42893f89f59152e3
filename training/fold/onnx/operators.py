"""ONNX operators by what they do to numbers, as far as more than one module needs to know.

Before everything else in the room; it knows names only.
"""

# fmt: off
ACTIVATIONS = frozenset({
    "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "LogSoftmax",
    "Mish", "PRelu", "Pow", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh",
    "ThresholdedRelu",
})
QUANTISED = frozenset({
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
})
RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})
DISCONTINUOUS = frozenset({  # of floats: their results may differ by more than rounding between two dtypes
    "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "Mod", "NonZero", "Round", "Sign", "TopK", "Unique",
})
# fmt: on
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
SHAPE_ONLY = frozenset({"Shape", "Size"})
SATURATING = ACTIVATIONS | DISCONTINUOUS | {"Max", "Min", "ReduceMax", "ReduceMin", "Shrink"}
NEVER_CONSTANT = QUANTISED | CONTROL_FLOW | RANDOM | SHAPE_ONLY | {""}  # "": of another domain
