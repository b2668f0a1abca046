"""Control of the fleet: commands are signed, delivered and acknowledged.

A command is complete only when every agent has reported its result.
"""
