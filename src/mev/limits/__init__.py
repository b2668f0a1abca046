"""Limits that protect the server from overload by single clients.

They cover request rates, sizes, timeouts, connections and early refusal under load. Nothing here
knows about accounts: callers pass names.
"""
