"""Statistics of stored events: counts and sums over time, and the top agents and venues."""
