"""Live events for WebSocket clients: subscriptions, batches, bounded buffers."""
