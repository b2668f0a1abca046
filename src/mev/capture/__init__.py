"""Turn Solana blocks and transactions, from files or an RPC node, into MEV events.

Only the command line uses this package; it knows no other capability. :mod:`mev.capture.service` is the rule book's
front door: transactions in, protocol messages out. Everything before it reads bytes, everything after it publishes.
"""
