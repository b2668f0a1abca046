"""Tests of the final packets of closed connections: when they are repeated, and for how long."""

from mev.realtime.webtransport.closed_connections import ClosedConnections

LAST = [(b"the end", ("192.0.2.1", 4433))]
ALONE, OTHER = b"11111111", b"22222222"


def test_last_packet_is_sent_again_but_not_for_every_packet() -> None:
    closed = ClosedConnections(keep_s=30, limit=10)
    closed.add({ALONE, OTHER}, LAST, now=0.0)
    assert closed.answer(ALONE, 0.05) == ()  # packets were under way when it was sent
    assert closed.answer(ALONE, 0.2) == LAST
    assert closed.answer(OTHER, 0.25) == ()
    assert closed.answer(OTHER, 15.0) == LAST


def test_last_packet_is_kept_for_a_while() -> None:
    closed = ClosedConnections(keep_s=30, limit=10)
    closed.add({ALONE}, LAST, now=0.0)
    closed.add({OTHER}, LAST, now=1.0)
    closed.expire(29.0)
    assert ALONE in closed
    closed.expire(30.0)
    assert ALONE not in closed
    assert OTHER in closed


def test_number_of_kept_packets_is_bounded() -> None:
    closed = ClosedConnections(keep_s=30, limit=2)
    for number in range(5):
        closed.add({b"%d" % number, b"%d'" % number}, LAST, now=0.0)
    assert [number for number in range(5) if b"%d" % number in closed] == [3, 4]
    assert b"0'" not in closed


def test_connection_that_told_nothing_is_not_kept() -> None:
    closed = ClosedConnections(keep_s=30, limit=2)
    closed.add({ALONE}, [], now=0.0)
    assert ALONE not in closed
