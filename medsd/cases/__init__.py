"""Earlier cases in the learned space, and how each resembles the film at hand."""
