"""Storage: ClickHouse, Redis and files, embedded or external.

Only this package imports the ClickHouse and Redis clients.
"""
