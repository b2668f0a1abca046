"""The Kafka topics that carry no event type of their own."""

DEAD_LETTER = "mev.dead-letter.v1"
CONTROL = "mev.control.v1"
REPORT = "mev.report.v1"
AUDIT = "mev.audit.v1"
