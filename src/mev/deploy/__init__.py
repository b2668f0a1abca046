"""Deployments: how a registered model comes to the agents of a module, step by step, and back by itself when it must.

A deployment is a sequence of signed commands of :mod:`mev.control`; it holds nothing that agents need. Whoever removes this package can
still swap models by hand.
"""
