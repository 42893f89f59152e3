"""One proven onnxruntime session: its device, its batch sizes, its rewritten graphs."""
