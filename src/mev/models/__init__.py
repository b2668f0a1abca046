"""Models as files: packed, compiled, compared with what they were made from, signed and registered.

What loads them stands in :mod:`mev.predict`, which the agent ships with.
"""
