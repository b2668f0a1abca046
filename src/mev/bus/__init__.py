"""Kafka: publishing, tailing, consumer groups and the embedded broker, behind one interface."""
