"""From logits to probabilities and calls: types that a bundle carries, and fits on validation images."""
