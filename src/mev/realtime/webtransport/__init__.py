"""WebTransport over HTTP/3 for live events: one stream per frame, or datagrams."""
