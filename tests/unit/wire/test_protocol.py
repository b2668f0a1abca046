"""The `.proto` files as other languages compile them."""

from mev.wire.pb import (
    audit_pb2,
    control_pb2,
    dead_letter_pb2,
    envelope_pb2,
    events_pb2,
    options_pb2,
    stream_pb2,
)

FILES = [
    module.DESCRIPTOR
    for module in (
        audit_pb2,
        control_pb2,
        dead_letter_pb2,
        envelope_pb2,
        events_pb2,
        options_pb2,
        stream_pb2,
    )
]


def test_every_proto_file_names_the_same_go_package() -> None:
    assert {file.GetOptions().go_package for file in FILES} == {"mev/protocol/v1;mevv1"}
