"""Signed envelopes, the keys that may sign them, and Merkle trees. No I/O but the file of a key."""
