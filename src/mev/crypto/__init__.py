"""Signed envelopes, signing keys and Merkle trees.

No I/O except reading and writing a key's file.
"""
