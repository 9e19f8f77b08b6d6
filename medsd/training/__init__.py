"""Pretraining with the SD loss, fine-tuning, and the run that resumes."""
