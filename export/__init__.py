"""From a checkpoint to a bundle: torch modules become ONNX graphs, verified against the source model."""
