"""The DICOM node: images come in by C-STORE, results go out, and a queue on disk stands between. Begin at `node`."""
