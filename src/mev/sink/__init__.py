"""The sink: inserts events from Kafka into ClickHouse exactly once, and records each block."""
