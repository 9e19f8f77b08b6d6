"""Image encoders, note encoders, and the model that joins them."""
