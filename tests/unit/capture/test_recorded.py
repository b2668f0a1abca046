"""The detector against recorded mainnet transactions whose figures were computed independently."""

from typing import Any

import pytest

from mev.capture.model import SOL_MINT
from mev.wire.pb import events_pb2
from tests.unit.capture.capturing import Run, recorded_block, recorded_lines

# One recorded arbitrage has a leg on Cropper, which is in no list and so in no label.
CROPPER_ROUTE = (
    "GCeRpjvfNXZB6BJFQChjpKycdKpRwQGS1BSwUvLjVpJj6NgdzzQACAWt89ZEfEXjeRSqzhDX8CHtzpMUnfJ7VMJ"
)
CROPPER_POOL = "3kyVVxbnEASKjLQB3wyPUc55VEGJWNeWZKf6Uv79YeuD"


@pytest.fixture(scope="module")
def labels() -> dict[str, Any]:
    return {label["signature"]: label for label in recorded_lines("labels.jsonl.gz")}


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(recorded_block("block-254170887.json.gz"), *recorded_lines("transactions.jsonl.gz"))


def test_exactly_the_labelled_arbitrages_are_found(run: Run, labels: dict[str, Any]) -> None:
    expected = {
        signature
        for signature, label in labels.items()
        if label["verdict"].startswith("ATOMIC_ARB")
    }
    assert {event.signature for event in run.events} == expected
    assert run.errors == []


def test_their_figures_are_the_labels(run: Run, labels: dict[str, Any]) -> None:
    for event in run.events:
        assert isinstance(event, events_pb2.Arbitrage)
        label = labels[event.signature]
        deltas = {
            SOL_MINT: {"raw": label["signer_sol_net_lamports"], "decimals": 9},
            **label["signer_token_deltas"],
        }
        assert event.profit_amount == int(deltas[event.profit_mint]["raw"])
        assert event.profit_decimals == deltas[event.profit_mint]["decimals"]
        assert (event.profit_mint == SOL_MINT) == ("(SOL)" in label["verdict"])
        assert event.fee_lamports == label["fee_lamports"]
        assert event.tip_lamports == label["jito_tip_lamports"]
        # The labels list known exchanges only; other legs are reported by program address.
        unlisted = [venue for venue in event.venues if venue in label["other_programs"]]
        assert [venue for venue in event.venues if venue not in unlisted] == label["dexes"]
        assert set(unlisted) <= set(event.unknown_programs)
        assert list(event.aggregators) == label["aggregators"]
        assert event.signer == label["signers"][0]
        assert event.slot == label["slot"]


def test_their_pools_are_the_labels(run: Run, labels: dict[str, Any]) -> None:
    unlisted = {}
    for event in run.events:
        expected = [pool for _, pool in labels[event.signature]["pools"]]
        # Where the label could not tell the pool it gives the pair of vaults.
        told = {pool for pool in expected if "," not in pool}
        assert [pool for pool in event.pools if pool in told] == [
            pool for pool in expected if pool in told
        ]
        if len(event.pools) != len(expected):
            unlisted[event.signature] = [pool for pool in event.pools if pool not in expected]
    assert unlisted == {CROPPER_ROUTE: [CROPPER_POOL]}


def test_tips_and_skips_are_counted(run: Run, labels: dict[str, Any]) -> None:
    tips = [label["jito_tip_lamports"] for label in labels.values() if label["jito_tip_lamports"]]
    assert (run.summary.tips, run.summary.tip_lamports) == (len(tips), sum(tips))
    assert run.summary.transactions == len(labels)
    assert run.summary.failed == sum(label["err"] for label in labels.values())


def test_look_alikes_stay_out_without_the_list_of_keepers(
    monkeypatch: pytest.MonkeyPatch, labels: dict[str, Any]
) -> None:
    monkeypatch.setattr("mev.capture.venues.KEEPERS", {})
    found = {event.signature for event in Run(*recorded_lines("transactions.jsonl.gz")).events}
    assert all(labels[signature]["verdict"].startswith("ATOMIC_ARB") for signature in found)


def test_a_base64_block_is_read() -> None:
    run = Run(recorded_block("devnet-block-270893658.json.gz"))
    assert run.summary.transactions == 57
    assert run.errors == []
