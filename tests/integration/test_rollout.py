"""Deployments in a running system, with agents that answer over the real topics."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from mev import settings
from mev.bus.boot import open_publisher
from mev.bus.embedded import embedded_brokers
from mev.control.keys import open_keys
from mev.core.clock import now_ns
from mev.core.errors import MevError
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.registry.registry import Registry
from mev.wire.pb.control_pb2 import ModelUse, Report
from mev.wire.topics import REPORT
from tests.services.models import register_bytes
from tests.services.reporting import enrol
from tests.services.system import RunningSystem
from tests.services.waits import until, until_document

MODULE = "arbitrage"
RULES = {"min_scored": 100, "hold_s": 0.2, "ack_timeout_s": 30}
WELL: dict[str, Any] = {
    "scored": 500,
    "failed": 0,
    "latency_p50_us": 8.0,
    "latency_p99_us": 11.0,
    "score_psi": 0.02,
}


class Bots:
    """Agents on their own thread that accept the newest model of each role and report it."""

    def __init__(self, system: RunningSystem, *names: str) -> None:
        self._system = system
        self._keys = {name: SigningKey.generate() for name in names}
        self._held: dict[tuple[str, str], dict[str, Any]] = {}
        self._counter = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.figures = {name: dict(WELL) for name in names}
        self.refuses = ""
        self.failure: Exception | None = None

    def start(self) -> None:
        """Enrol, start to answer, and return after all agents have reported."""
        with self._system.client() as http:
            for name, key in self._keys.items():
                enrol(http, key, {"agent_id": name, "module": MODULE}).raise_for_status()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        with self._system.client() as http:
            until(
                lambda: (
                    sum(
                        one["online"]
                        for one in http.get("/api/control/agents").json()["items"]
                        if one["module"] == MODULE
                    )
                    == len(self._keys)
                )
            )

    def stop(self) -> None:
        """Say nothing more."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def model(self, name: str, role: str = "PRODUCTION") -> str:
        """Return the model that an agent has in a role."""
        return str(self._held.get((name, role), {}).get("model_id", ""))

    def _run(self) -> None:
        runtime = json.loads((self._system.data_dir / "runtime.json").read_text())
        brokers = embedded_brokers(self._system.data_dir / "kafka", runtime["kafka"])
        try:
            with (
                self._system.client() as http,
                closing(open_publisher(settings.load(), brokers)) as publisher,
            ):
                while not self._stop.wait(0.05):
                    commands = (
                        http.get("/api/control/commands?limit=100")
                        .raise_for_status()
                        .json()["items"]
                    )
                    for name, key in self._keys.items():
                        said = [*self._answers(name, commands), self._report(name, "", "STATUS")]
                        records = [
                            {"key": name.encode(), "value": seal(one, key).SerializeToString()}
                            for one in said
                        ]
                        publisher.publish_and_wait(REPORT, records)  # type: ignore[arg-type]
        except (MevError, httpx.HTTPError) as error:
            self.failure = error

    def _answers(self, name: str, newest: list[dict[str, Any]]) -> Iterator[Report]:
        for command in reversed(newest):
            target, place = command["target"], (name, command["body"].get("role", ""))
            if command["kind"] != "model" or not (
                name in target.get("agent_ids", ()) or MODULE in target.get("modules", ())
            ):
                continue
            if self._held.get(place, {"counter": 0})["counter"] >= int(
                command["version"]["counter"]
            ):
                continue
            self._held[place] = command["body"] | {"counter": int(command["version"]["counter"])}
            yield self._report(name, command["id"], "NACK" if self.refuses else "ACK")

    def _report(self, name: str, command_id: str, result: str) -> Report:
        self._counter += 1
        report = Report(
            agent_id=name,
            module=MODULE,
            agent_counter=self._counter,
            command_id=command_id,
            result=result,
        )
        report.reported_at_ns, report.reason_code = (
            now_ns(),
            self.refuses if result == "NACK" else "",
        )
        for (holder, role), body in self._held.items():
            if holder == name and body["model_id"]:
                sha256 = base64.b64decode(body["sha256"])
                use = ModelUse(
                    role=role, model_id=body["model_id"], sha256=sha256, **self.figures[name]
                )
                report.running.models.append(use)
        return report


@pytest.fixture(scope="module")
def deploying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run a system that looks at its deployments often."""
    running = RunningSystem(tmp_path_factory.mktemp("deploy") / "data", DEPLOY_WATCH_S="0.05")
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def bots(deploying: RunningSystem) -> Iterator[Bots]:
    running = Bots(deploying, "a1", "a2")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def api(deploying: RunningSystem) -> Iterator[httpx.Client]:
    with deploying.client() as client:
        yield client


def registered(system: RunningSystem, name: str) -> str:
    """Register a model with the keys of the system, and return its id."""
    keys = open_keys(system.data_dir / "control", seed_hex=None, key_id=None, now_ns=now_ns())
    return register_bytes(
        Registry(system.data_dir / "models", keys.trust), name, keys.model_signer()
    )


def in_state(http: httpx.Client, deployment_id: str, *states: str) -> dict[str, Any]:
    """Return the deployment once it is in one of `states`."""
    return dict(
        until_document(
            http,
            f"/api/training/deployments/{deployment_id}",
            lambda found: found["state"] in states,
        )
    )


def deployed(http: httpx.Client, model: str, stage: str, **more: Any) -> dict[str, Any]:
    answer = http.post(f"/api/training/models/{model}/deploy", json={"stage": stage} | more)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def test_a_model_goes_from_the_shadow_to_production_and_back(
    deploying: RunningSystem, bots: Bots, api: httpx.Client
) -> None:
    old, new = registered(deploying, "old"), registered(deploying, "new")
    first = deployed(api, old, "production", rules=RULES)
    in_state(api, first["id"], "done")
    began = deployed(api, new, "shadow", share=0.5, rules=RULES, reason="a try")
    ready = in_state(api, began["id"], "ready")
    assert {
        (one["agent_id"], one["state"]) for one in ready["steps"][0]["commands"][0]["deliveries"]
    } == {
        ("a1", "SYNCED"),
        ("a2", "SYNCED"),
    }
    assert {
        (one["role"], one["model_id"], one["scored"], one["deployed"]) for one in ready["figures"]
    } == {
        ("production", old, 1000, False),
        ("shadow", new, 1000, True),
    }
    assert {one["verdict"] for one in ready["rules"]} == {"holds", "off"}
    assert deployed(api, new, "canary")["canaries"] in (["a1"], ["a2"])
    in_state(api, began["id"], "ready")
    assert sorted([bots.model("a1"), bots.model("a2")]) == sorted([old, new])
    deployed(api, "challenger", "production")
    done = in_state(api, began["id"], "done")
    assert [step["stage"] for step in done["steps"]] == ["shadow", "canary", "production"]
    assert (bots.model("a1"), bots.model("a2")) == (new, new)
    until(lambda: not bots.model("a1", "SHADOW"))
    assert api.get("/api/training/models/champion").json()["id"] == new
    back = deployed(api, "champion", "rollback", reason="enough")
    assert (back["state"], back["because"], back["previous_model_id"]) == (
        "rolled_back",
        "enough",
        old,
    )
    assert api.get("/api/training/models/champion").json()["id"] == old
    _check_lists(api, first["id"], began["id"])
    _check_trail(api, new)


def _check_lists(api: httpx.Client, first: str, second: str) -> None:
    page = api.get("/api/training/deployments", params={"module": MODULE, "limit": 1}).json()
    following = api.get(
        "/api/training/deployments", params={"limit": 1, "cursor": page["next_cursor"]}
    ).json()
    assert [one["items"][0]["id"] for one in (page, following)] == [second, first]
    assert [
        one["id"] for one in api.get("/api/training/deployments?state=done").json()["items"]
    ] == [first]
    assert api.get("/api/training/deployments?cursor=nope").json()["code"] == "invalid_cursor"
    assert api.get("/api/training/deployments/nope").json()["code"] == "unknown_deployment"


def _check_trail(api: httpx.Client, model: str) -> None:
    wanted = ["training.deploy", "training.promote", "training.promote", "training.rollback"]

    def done() -> list[str]:
        trail = api.get("/api/control/audit-log?limit=200").json()["items"]
        return sorted(
            item["action"]
            for item in trail
            if item["object"] == model and item["action"].startswith("training.")
        )

    until(lambda: len(done()) >= len(wanted))
    assert done() == wanted
    commands = api.get("/api/control/commands?limit=200").json()["items"]
    assert {item["issuer"] for item in commands if item["kind"] == "model"} == {"master"}


@pytest.mark.parametrize(
    ("model", "body", "status", "code"),
    [
        ("f" * 64, {"stage": "shadow"}, 404, "unknown_model"),
        ("one", {"stage": "sideways"}, 422, "invalid_request"),
        ("one", {"stage": "shadow", "share": 0}, 422, "invalid_request"),
        ("one", {"stage": "shadow", "rules": {"max_speed": 1}}, 422, "invalid_request"),
        ("one", {"stage": "shadow", "rules": {"min_scored": 1e30}}, 422, "invalid_request"),
        ("one", {"stage": "shadow", "agent_ids": ["a1"]}, 422, "invalid_request"),
        ("one", {"stage": "canary", "agent_ids": ["nobody"]}, 409, "no_agents"),
        ("one", {"stage": "shadow", "module": "nobody"}, 409, "no_agents"),
        ("one", {"stage": "shadow", "form": "so"}, 409, "model_form_missing"),
        ("one", {"stage": "rollback"}, 409, "nothing_to_roll_back"),
    ],
)
@pytest.mark.usefixtures("bots")
def test_a_refusal_has_a_code(
    deploying: RunningSystem,
    api: httpx.Client,
    model: str,
    body: dict[str, Any],
    status: int,
    code: str,
) -> None:
    name = registered(deploying, "one") if model == "one" else model
    answer = api.post(f"/api/training/models/{name}/deploy", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.mark.usefixtures("bots")
def test_production_is_for_those_who_may_raise(deploying: RunningSystem, api: httpx.Client) -> None:
    model = registered(deploying, "raised")
    body = {"name": "trainer", "scopes": ["models:deploy", "models:read"], "days": 1}
    key = api.post("/api/auth/keys", json=body).raise_for_status().json()["key"]
    with httpx.Client(base_url=deploying.url, headers={"X-API-Key": key}) as trainer:
        for wanted in (
            {"stage": "production"},
            {"stage": "shadow", "promote": True},
            {"stage": "canary", "share": 1},
        ):
            refused = trainer.post(f"/api/training/models/{model}/deploy", json=wanted)
            assert (refused.status_code, refused.json()["permission"]) == (403, "control:raise")
        assert trainer.get("/api/training/deployments").status_code == 200


@pytest.mark.slow
def test_the_command_line_waits_and_fails_when_it_is_rolled_back(
    deploying: RunningSystem, bots: Bots, api: httpx.Client
) -> None:
    good, bad = registered(deploying, "good"), registered(deploying, "bad")
    options = ("--wait", "--rule", "min_scored=100", "--rule", "hold_s=0.2")
    done = deploying.run(
        "deploy", good, "--stage", "shadow", "--share", "0.2", "--promote", *options, "--json"
    )
    assert json.loads(done.stdout)["state"] == "done"
    assert "production a2: SYNCED" in done.stderr
    bots.figures["a2"]["score_psi"] = 0.9
    failed = deploying.run("deploy", bad, "--stage", "shadow", *options, check=False)
    bots.figures["a2"]["score_psi"] = 0.02
    assert failed.returncode == 1
    assert "max_score_psi" in failed.stderr
    listed = deploying.run("deployments", "--state", "rolled_back").stdout
    assert bad[:12] in listed
    (last, *_) = api.get("/api/training/deployments").json()["items"]
    shown = deploying.run("deployments", last["id"]).stdout
    assert "max_score_psi: 0.9, bound 0.25" in shown
    assert deploying.run("deploy", bad, "--stage", "rollback", check=False).returncode == 1
    assert (
        deploying.run(
            "deploy", bad, "--stage", "shadow", "--rule", "hold_s", check=False
        ).returncode
        == 2
    )
    assert bots.model("a1") == good


def test_a_direct_swap_ends_a_deployment(
    deploying: RunningSystem, bots: Bots, api: httpx.Client
) -> None:
    began = deployed(api, registered(deploying, "trial"), "shadow", rules=RULES)
    in_state(api, began["id"], "ready")
    swap = {
        "model_id": "mine",
        "model_path": "mine.mevt",
        "version": "1",
        "target": {"modules": [MODULE]},
        "sha256": "0" * 64,
    }
    command = api.post("/api/control/model-swap", json=swap).raise_for_status().json()
    assert command["id"] in in_state(api, began["id"], "superseded")["because"]
    until(lambda: not bots.model("a1", "SHADOW"))


@pytest.mark.slow
def test_a_watch_goes_on_after_kill_9(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path / "data", DEPLOY_WATCH_S="0.05")
    system.start()
    model, bots = registered(system, "lasting"), Bots(system, "a1")
    bots.figures["a1"]["scored"] = 0
    try:
        bots.start()
        with system.client() as http:
            began = deployed(http, model, "canary", rules=RULES, promote=True)
            in_state(http, began["id"], "watching")
        bots.stop()
        system.kill()
        system.start()
        bots.figures["a1"]["scored"] = 500
        bots.start()
        with system.client() as http:
            done = in_state(http, began["id"], "done")
            commands = [
                item["id"]
                for item in http.get("/api/control/commands").json()["items"]
                if item["kind"] == "model"
            ]
        assert sorted(
            order["command_id"] for step in done["steps"] for order in step["commands"]
        ) == sorted(commands)
        assert len(commands) == 2
    finally:
        bots.stop()
        system.kill()
