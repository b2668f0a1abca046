"""Shared basics for every layer: errors, time, files, process life cycle, logging.

No network access and no third-party services.
"""
