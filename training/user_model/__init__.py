"""Somebody's own network, for the commands that take one: `fold`, `publish` and `verify`.

From what was typed to a module in eval mode with its weights, or an ONNX model; knows nothing of folding or serving.
"""
