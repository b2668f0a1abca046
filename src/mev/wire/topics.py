"""Kafka topics without an event type, and the sink's consumer group."""

DEAD_LETTER = "mev.dead-letter.v1"
CONTROL = "mev.control.v1"
REPORT = "mev.report.v1"
AUDIT = "mev.audit.v1"
OTHER_TOPICS = (DEAD_LETTER, CONTROL, REPORT, AUDIT)
SINK_GROUP = "mev-sink"
