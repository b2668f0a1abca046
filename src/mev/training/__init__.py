"""Training: from the files of an export to a model with its metrics, in a process of its own."""
