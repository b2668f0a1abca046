"""Detection of MEV events in Solana blocks and transactions, from files or an RPC node.

Only the command line uses this package. :mod:`mev.capture.service` is the entry point: documents
in, protocol messages out.
"""
