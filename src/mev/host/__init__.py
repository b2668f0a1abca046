"""Health checks and metrics of this process and its dependencies."""
