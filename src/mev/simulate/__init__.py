"""Simulated opportunities, bundles and ticks with a learnable relation, for demos and load."""
