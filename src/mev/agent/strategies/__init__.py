"""Strategies that come with the agent: for reference and for paper trading."""
