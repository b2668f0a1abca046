"""WebSockets on the port of the HTTP application: one connection per client."""
