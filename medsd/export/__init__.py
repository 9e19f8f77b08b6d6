"""A trained model as ONNX: graph, parity, quantisation, and other ways to serve it."""
