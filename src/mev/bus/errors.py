"""What can go wrong between us and the brokers."""

from mev.core.errors import UnavailableError


class QueueFullError(UnavailableError):
    """The producer's queue is full."""

    code = "publish_queue_full"


class PublishError(UnavailableError):
    """The brokers did not acknowledge a message."""

    code = "publish_failed"


class BrokerUnavailableError(UnavailableError):
    """No broker answers."""

    code = "kafka_unavailable"
