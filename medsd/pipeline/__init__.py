"""A training run from source to bundle: its steps, what they depend on, and how it resumes."""
