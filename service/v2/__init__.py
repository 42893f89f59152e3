"""The Open Inference Protocol, version 2: what Triton, KServe, MLServer and OpenVINO clients speak.

Bytes and messages on one side, arrays by name on the other; the registry and the batcher below are the ones that
`/predict` uses, so that an answer never depends on the protocol.
"""
