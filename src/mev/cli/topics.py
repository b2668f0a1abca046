"""Commands ``mev topics``: the topics of this program, and how far the sink is behind."""

from typing import Annotated

import typer

from mev.bus import topics as declared
from mev.bus.boot import external_brokers
from mev.bus.kafka import KafkaCluster
from mev.bus.lag import group_lag
from mev.bus.topics import Difference, TopicAction, declared_topics, differences
from mev.cli.tables import print_table
from mev.core.errors import ConflictError
from mev.service_clients import find_brokers
from mev.settings import Settings, load
from mev.store.folder import DataFolder
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import SINK_GROUP

topics = typer.Typer(
    help="Show and change topics, and show the lag of the sink.", no_args_is_help=True
)
_COLUMNS = ("topic", "property", "is", "declared", "change")


@topics.command()
def show() -> None:
    """Show the topics: partitions, replication, retention, cleanup and in-sync replicas."""
    settings = load()
    names = [spec.name for spec in declared_topics(settings)]
    found = _cluster(settings).describe_topics(names, declared.SHOWN_CONFIG)
    print_table(
        ("topic", "partitions", "replication", *declared.SHOWN_CONFIG),
        [
            (
                name,
                str(state.partitions),
                str(state.replication),
                *(state.config.get(key, "") for key in declared.SHOWN_CONFIG),
            )
            if (state := found.get(name))
            else (name, "missing", *[""] * (1 + len(declared.SHOWN_CONFIG)))
            for name in names
        ],
    )


@topics.command()
def diff() -> None:
    """Show what is not as the settings declare; exit code 1 if there is something."""
    found = _differences(load())
    _print(found)
    if found:
        raise typer.Exit(1)


@topics.command()
def apply(
    grow_partitions: Annotated[
        bool,
        typer.Option(
            "--grow-partitions",
            help="Add partitions too: the order of a key's events is lost across the change.",
        ),
    ] = False,
) -> None:
    """Create topics and change their configuration as the settings declare.

    Exit code 1 if something remains that this command does not change.
    """
    settings = load()
    found = _differences(settings)
    changed = declared.apply(
        _cluster(settings), declared_topics(settings), found, grow=grow_partitions
    )
    _print(changed)
    if left := [each for each in found if each not in changed]:
        typer.echo("not changed:", err=True)
        _print(left)
        if any(each.action is TopicAction.GROW for each in left):
            typer.echo("partitions are added with --grow-partitions", err=True)
        raise typer.Exit(1)


@topics.command()
def lag() -> None:
    """Show what the sink has not stored of each partition: in messages, and in seconds.

    The seconds are the age of the oldest of these messages.
    """
    settings = load()
    brokers = find_brokers(settings, DataFolder(settings.mev_data_dir))
    found = group_lag(brokers, SINK_GROUP, BY_TOPIC, timeout_s=settings.service_timeout_s)
    print_table(
        ("topic", "partition", "committed", "latest", "messages", "seconds"),
        [
            (
                each.topic,
                str(each.partition),
                str(each.committed),
                str(each.latest),
                str(each.messages),
                "unknown" if each.seconds is None else f"{each.seconds:.1f}",
            )
            for each in found
            if each.latest
        ],
    )


def _differences(settings: Settings) -> list[Difference]:
    specs = declared_topics(settings)
    found = _cluster(settings).describe_topics([spec.name for spec in specs], declared.SHOWN_CONFIG)
    return differences(specs, found)


def _cluster(settings: Settings) -> KafkaCluster:
    brokers = external_brokers(settings)
    if brokers is None:
        raise ConflictError(
            "the embedded broker makes its topics itself; set KAFKA_BROKERS to use another",
            code="kafka_is_embedded",
        )
    return KafkaCluster(brokers, timeout_s=settings.service_timeout_s)


def _print(found: list[Difference]) -> None:
    rows = [(each.topic, each.name, each.found, each.wanted, each.action.value) for each in found]
    print_table(_COLUMNS, rows)
