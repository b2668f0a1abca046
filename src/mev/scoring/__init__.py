"""Scoring: load signed models without a training library.

Ships with the agent. Building and registering models is in :mod:`mev.registry`.
"""
