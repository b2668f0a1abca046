"""Ingest of events over HTTP, and queries of recent events."""
