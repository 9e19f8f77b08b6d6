"""From an image to a prediction, without torch."""
