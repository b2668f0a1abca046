"""Training: build a model with its metrics from an export, in a separate process."""
