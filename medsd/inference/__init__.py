"""From a film to a prediction, without torch."""
