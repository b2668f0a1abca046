"""The HTTP server, and the composition of the system."""
