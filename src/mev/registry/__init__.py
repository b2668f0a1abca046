"""Model registry: pack, compile, compare, sign and store models.

Loading a model is in :mod:`mev.scoring`, which ships with the agent.
"""
