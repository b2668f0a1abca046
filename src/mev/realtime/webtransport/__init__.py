"""WebTransport over HTTP/3 for live events: each frame on a stream of its own, or in a datagram."""
