"""Tests of the imports of commands, and of the table behind `mev --help`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mev
from mev.cli.main import ENTRIES, make

LIBRARIES = {
    "aioquic",
    "clickhouse_connect",
    "confluent_kafka",
    "cryptography",
    "fastapi",
    "google.protobuf",
    "httpx",
    "jwt",
    "numpy",
    "prometheus_client",
    "pydantic_settings",
    "redis",
    "solders",
    "uvicorn",
    "uvloop",
    "websockets",
    "xgboost",
}
PROGRAM = """
import json, sys
from mev.cli.main import main
sys.argv = ["mev", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as ended:
    print(json.dumps([ended.code or 0, sorted(sys.modules)]), file=sys.stderr)
"""


def run(folder: Path, *arguments: str) -> tuple[int, str, set[str]]:
    """Run a command in its own process; return exit code, output and imported libraries."""
    environment = os.environ | {"MEV_DATA_DIR": str(folder), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    return code, done.stdout, LIBRARIES.intersection(modules)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (("--help",), set[str]()),
        (("--version",), set()),
        (("config", "--help"), set()),
        (("config", "key"), {"pydantic_settings"}),
        (("kill", "--help"), {"pydantic_settings", "httpx"}),
        (("status", "--help"), {"pydantic_settings", "httpx"}),
        (("command", "list", "--help"), {"pydantic_settings", "httpx"}),
        (("agents", "list", "--help"), {"pydantic_settings", "httpx"}),
        (("doctor", "--help"), set()),
        (("jobs", "list", "--help"), {"pydantic_settings", "httpx"}),
        (("train", "--help"), {"pydantic_settings", "httpx", "google.protobuf"}),
        (("models", "list", "--help"), {"pydantic_settings", "httpx"}),
        (("user", "list", "--help"), {"pydantic_settings", "httpx"}),
        (("deploy", "--help"), {"pydantic_settings", "httpx", "google.protobuf"}),
        (("datasets", "list", "--help"), {"pydantic_settings", "httpx", "google.protobuf"}),
        (("tail", "--help"), {"google.protobuf", "websockets"}),
        (
            ("audit", "list", "--help"),
            {"pydantic_settings", "httpx", "google.protobuf", "cryptography"},
        ),
    ],
    ids=lambda value: " ".join(value if isinstance(value, tuple) else sorted(value)),
)
def test_command_imports_only_the_libraries_that_it_uses(
    tmp_path: Path, arguments: tuple[str, ...], allowed: set[str]
) -> None:
    code, _, imported = run(tmp_path, *arguments)
    assert code == 0
    assert imported <= allowed


def test_version_is_the_version_of_the_package(tmp_path: Path) -> None:
    assert run(tmp_path, "--version")[:2] == (0, f"mev {mev.__version__}\n")


def test_config_key_works_before_the_data_folder_exists(tmp_path: Path) -> None:
    code, key, _ = run(tmp_path / "a" / "b", "config", "key")
    assert code == 0
    assert run(tmp_path / "a" / "b", "config", "key")[1] == key
    assert len(key.strip()) >= 32


def test_config_key_says_where_no_system_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from mev.cli.main import main; main()", "config", "key"]
    environment = os.environ | {"MEV_DATA_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert f"no system runs on {tmp_path}" in done.stderr
    assert done.stdout.strip() not in done.stderr


@pytest.mark.parametrize("name", ENTRIES)
def test_help_of_the_table_is_the_help_of_the_command(name: str) -> None:
    first_line = (make(name).help or "").partition("\n")[0]
    assert ENTRIES[name].help == first_line
