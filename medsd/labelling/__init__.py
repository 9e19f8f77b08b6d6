"""Which studies to label next."""
