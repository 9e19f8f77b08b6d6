"""Earlier cases in the learned space, and how each resembles another study."""
