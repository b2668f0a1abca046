"""Scoring: loads models that were signed, in a form that needs no training library.

It ships with the agent. Making and registering models is the work of :mod:`mev.models`.
"""
