"""Key sets that are in force no longer: whose signature counted, and until when."""

from dataclasses import dataclass

from mev.wire.pb.envelope_pb2 import KeySet


@dataclass(frozen=True, slots=True)
class Retired:
    """A key set that was in force once, and when the one after it was issued."""

    key_set: KeySet
    until_ns: int
