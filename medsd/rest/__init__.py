"""The model over HTTP (`medsd serve`): predictions of files, and tensors by the Open Inference Protocol."""
