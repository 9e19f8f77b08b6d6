"""Many inputs: paths to rows, read ahead, in batches, on this machine or on a cluster."""
