"""Measure the hot paths as ratios to the raw library, engine or peer that does the same in the same run."""
