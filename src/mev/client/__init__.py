"""The streaming client: events of a running control plane in a few lines of Python.

A product of its own: it imports only the core, the wire and a WebSocket library. :class:`Stream` is the connection; it comes back by
itself, goes on where it was, and says what was lost.
"""
