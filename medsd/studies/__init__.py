"""Studies: the manifest, its sources, and splits by patient."""
