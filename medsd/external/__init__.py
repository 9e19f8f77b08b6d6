"""A bundle on the studies of another hospital: measured, and calibrated anew."""
