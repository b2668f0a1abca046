"""The audit trail: an append-only journal that is a Merkle tree, signed heads of it kept elsewhere, and what checks them."""
