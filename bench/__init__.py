"""Benchmarks of hot paths as ratios to the raw library, engine or peer in the same run."""
