"""A system is saved, destroyed and restored."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.services.system import RunningSystem
from tests.services.waits import until_document

KEY_NAMES = ("master-api-key", "jwt-secret-key", "control/root-key", "audit/signing-key")


def seen(system: RunningSystem) -> dict[str, Any]:
    """Return what a person sees of the data of the system."""
    with system.client() as http:
        orders = http.get("/api/control/commands").raise_for_status().json()["items"]
        events = http.get("/api/events/opportunity?limit=100").raise_for_status().json()["items"]
        users = http.get("/api/auth/users").raise_for_status().json()
    return {
        "users": users,
        "orders": [each["id"] for each in orders],
        "events": sorted(each["id"] for each in events),
        "key": system.key,
    }


def check_reconciled(system: RunningSystem) -> None:
    assert json.loads(system.run("sink", "reconcile", "--json").stdout)["complete"] is True


@pytest.mark.slow
def test_destroyed_system_is_restored_from_a_backup(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path / "data")
    passphrase, saved = tmp_path / "passphrase", tmp_path / "saved"
    passphrase.write_text("correct horse battery staple\n")
    arguments = (str(saved), "--passphrase-file", str(passphrase))
    try:
        system.start()
        system.simulate(20)
        with system.client() as http:
            order = {"scope": "all", "level": "HALTED", "reason": "before the backup"}
            http.post("/api/control/kill-switch", json=order).raise_for_status()
        before = seen(system)
        assert before["orders"]
        refused = system.run("backup", *arguments, check=False)
        assert (refused.returncode, "another mev runs" in refused.stderr) == (1, True)
        assert system.stop() == 0
        keys = [(system.data_dir / name).read_bytes().strip() for name in KEY_NAMES]
        assert "saved to" in system.run("backup", *arguments).stdout
        for path in saved.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not any(key in content for key in keys), path

        shutil.rmtree(system.data_dir)
        passphrase.write_text("another passphrase\n")
        refused = system.run("restore", *arguments, check=False)
        assert (refused.returncode, system.data_dir.exists()) == (2, False)
        passphrase.write_text("correct horse battery staple\n")
        assert "sound" in system.run("restore", *arguments).stdout

        system.start()
        assert "sound" in system.run("audit", "verify", "--against-copies").stdout
        check_reconciled(system)
        assert seen(system) == before
        with system.client() as http:
            body = {"market_id": "after-restore", "timestamp_ns": 1}
            http.post("/api/events/tick", json=body).raise_for_status()
            until_document(
                http, "/api/events/tick?market_id=after-restore", lambda page: page["items"]
            )
        check_reconciled(system)
        assert system.stop() == 0
    finally:
        system.kill()
