"""Made-up opportunities, bundles and ticks with a relation that can be learned, for demonstration and load."""
