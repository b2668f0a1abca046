"""The Kafka topics that carry no event type of their own."""

DEAD_LETTER = "mev.dead-letter.v1"
