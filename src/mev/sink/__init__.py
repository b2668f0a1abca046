"""From Kafka to ClickHouse: every event once, in blocks, with a record of each block."""
