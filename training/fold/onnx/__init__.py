"""The ONNX front end: the same steps on a file's graph, with a proof of their own."""
