"""Live and past events for clients over WebSocket, WebTransport and Server-Sent Events.

From outside: `boot` starts it, `routes` and `sse` are its HTTP paths, `access` controls who may
read.

- An event: `hub` takes batches from Kafka, `group` collects those of one selection, `batch` encodes
  each once, `subscription` sends it or queues it in its `outbox`, and a `link` writes it.
- A request: `requests` reads `messages`, `subscriber` starts subscriptions with their `options`.
- The past: `positions` finds where a subscription starts, `catchup` reads from there to live with
  a reader of the `replay_pool`; `snapshots` has the newest event of each key.
- A client that is slow or silent: `backpressure`, `timeouts`.

`websocket` and `webtransport` know their protocol; everything else knows them as a `link` only.
"""
