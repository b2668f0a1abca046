"""Audit trail: a journal with a Merkle tree, signed checkpoints, copies and verification."""
