"""Kafka clients of commands: to the brokers of the settings, or to those of the local system."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from mev.bus.boot import external_brokers, open_publisher
from mev.bus.embedded import CONTROL_PLANE_USER, KAFKA_FOLDER, embedded_brokers
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.settings import Settings, load
from mev.store.folder import DataFolder


def find_brokers(
    settings: Settings, folder: DataFolder, *, user: str = CONTROL_PLANE_USER
) -> Brokers:
    """Return the brokers of the settings, or those of the system running on `folder`.

    Embedded brokers are used as `user`.

    :raises NotRunningError: when neither exists.
    """
    if (brokers := external_brokers(settings)) is not None:
        return brokers
    runtime = folder.read_runtime()
    if not runtime.kafka_embedded:
        return Brokers(servers=runtime.kafka)
    return embedded_brokers(folder.path / KAFKA_FOLDER, runtime.kafka, user=user)


@contextmanager
def connect() -> Iterator[Publisher]:
    """Yield a publisher to the brokers of the settings, or of the local system."""
    settings = load()
    with closing(
        open_publisher(settings, find_brokers(settings, DataFolder(settings.mev_data_dir)))
    ) as publisher:
        yield publisher
