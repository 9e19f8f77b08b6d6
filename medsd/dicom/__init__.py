"""DICOM files: reading, and the gate in front of the model."""
