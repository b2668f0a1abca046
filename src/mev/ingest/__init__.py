"""Events in over HTTP, and the recent ones out again."""
