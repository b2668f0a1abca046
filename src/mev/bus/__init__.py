"""Kafka: publishing, following, consuming in a group, and the embedded broker. Nothing else knows the Kafka client."""
