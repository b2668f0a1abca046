"""Deployments: staged rollout of a registered model to a module's agents, with rollback.

A deployment is a sequence of signed commands of :mod:`mev.control`; it holds nothing that agents
need. Without this package, models can still be swapped by hand.
"""
