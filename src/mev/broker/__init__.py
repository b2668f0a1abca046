"""The embedded Kafka broker: a separate process with a log on disk and password authentication.

One node, without replication and transactions; ordinary Kafka clients work unchanged. It imports
only the core, and no Kafka client.
"""
