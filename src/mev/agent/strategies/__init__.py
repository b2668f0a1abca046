"""Strategies shipped with the agent, for reference and for paper trading."""
