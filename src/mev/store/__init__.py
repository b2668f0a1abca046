"""ClickHouse, Redis and files, embedded or not. Nothing else knows the ClickHouse and Redis clients."""
