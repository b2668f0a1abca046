"""Reconciliation of Kafka with ClickHouse: finds committed records that no block covers."""

from dataclasses import dataclass

from mev.bus.group import all_group_offsets
from mev.bus.kafka import Brokers
from mev.store.clickhouse import ClickHouse
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import SINK_GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """One partition's offsets in Kafka, committed offset, and uncovered ranges before it."""

    topic: str
    partition: int
    earliest: int
    latest: int
    committed: int
    stored_records: int
    dead_letters: int
    missing: list[tuple[int, int]]


@dataclass(frozen=True)
class Reconciler:
    """Compares the offsets in `brokers` with the blocks in ClickHouse for the cluster `cluster`.

    Its method blocks, up to `timeout_s` for each request to the brokers.
    """

    brokers: Brokers
    cluster: str
    clickhouse: ClickHouse
    timeout_s: float

    def coverage(self) -> list[Coverage]:
        """Return the coverage of every partition, ordered by topic and partition."""
        offsets = all_group_offsets(self.brokers, SINK_GROUP, BY_TOPIC, timeout_s=self.timeout_s)
        blocks = self._blocks()
        answer = []
        for (topic, partition), (earliest, latest, committed) in sorted(offsets.items()):
            ranges = blocks.get((topic, partition), [])
            answer.append(
                Coverage(
                    topic=topic,
                    partition=partition,
                    earliest=earliest,
                    latest=latest,
                    committed=committed,
                    stored_records=sum(records for _, _, records, _ in ranges),
                    dead_letters=sum(letters for _, _, _, letters in ranges),
                    missing=uncovered(
                        [(first, last) for first, last, _, _ in ranges], earliest, committed
                    ),
                )
            )
        return answer

    def _blocks(self) -> dict[tuple[str, int], list[tuple[int, int, int, int]]]:
        rows = self.clickhouse.rows(
            "SELECT topic, partition, first_offset, last_offset, records, dead_letters "
            f"FROM `{self.clickhouse.database}`.`ingest_blocks` FINAL "
            "WHERE cluster = {cluster:String} "
            "ORDER BY topic, partition, first_offset",
            {"cluster": self.cluster},
        )
        blocks: dict[tuple[str, int], list[tuple[int, int, int, int]]] = {}
        for topic, partition, first, last, records, letters in rows:
            blocks.setdefault((topic, partition), []).append((first, last, records, letters))
        return blocks


def uncovered(
    ranges: list[tuple[int, int]], earliest: int, committed: int
) -> list[tuple[int, int]]:
    """Return the gaps before `committed`, both ends included, between the sorted `ranges`.

    The search starts at the first range or at `earliest`, whichever is lower: committed records
    that Kafka still has must be covered.
    """
    gaps = []
    covered = min(ranges[0][0], earliest) if ranges else earliest
    for first, last in [*ranges, (committed, committed - 1)]:
        if first > covered:
            gaps.append((covered, first - 1))
        covered = max(covered, last + 1)
    return gaps
