"""Tests of the Dockerfile: its steps are run in namespaces, as there is no registry to build from.

The own steps of the last stage run on a copy of /etc and an empty /var/lib. Then the control plane
of this environment runs as the container would: as process 1, as the image's user, without
capabilities, with the variables of the image, on a root file system that cannot be written.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from mev.settings import Settings
from tests.services import require
from tests.services.waits import until

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
ENVIRONMENT = Path(sys.prefix)
Instruction = dict[str, Any]


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage."""
    found: list[list[Instruction]] = []
    parser = DockerfileParser(path=str(DOCKERFILE.parent), cache_content=True)
    for each in parser.structure:
        if each["instruction"] == "FROM":
            found.append([])
        if each["instruction"] != "COMMENT":
            found[-1].append(each)
    return found


def values(stage: list[Instruction], name: str) -> list[str]:
    return [each["value"] for each in stage if each["instruction"] == name]


def variables() -> dict[str, str]:
    (value,) = values(stages()[-1], "ENV")
    pairs = (each.partition("=") for each in shlex.split(value))
    return {name: text for name, _, text in pairs}


def test_variables_are_settings() -> None:
    known = {name.upper() for name in Settings.model_fields} | {
        "PATH",
        "HOME",
        "PYTHONDONTWRITEBYTECODE",
    }
    assert variables().keys() <= known
    assert [values(stage, "FROM")[0].split()[0] for stage in stages()] == ["python:3.11-slim"] * 2


def test_copied_files_exist_and_are_not_ignored() -> None:
    rules = [
        line
        for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = [source for value in values(stages()[0], "COPY") for source in value.split()[:-1]]
    assert "src" in copied
    for source in copied:
        assert (ROOT / source).exists()
        assert source in let_in or any(name.startswith(f"{source}/") for name in let_in)


def test_packages_of_the_lock_file_are_installed_by_the_step() -> None:
    (step,) = [each for each in values(stages()[0], "RUN") if "--require-hashes" in each]
    command = step.replace("/opt/mev", str(ENVIRONMENT)).replace("/src", str(ROOT))
    done = subprocess.run(
        f"{command} --dry-run", shell=True, capture_output=True, text=True, check=True
    )
    assert "Would install" not in done.stdout
    (check,) = [each for each in values(stages()[0], "RUN") if "mev._native" in each]
    subprocess.run(check.replace("/opt/mev", str(ENVIRONMENT)), shell=True, check=True)


PREPARE = """
set -eu
umask 022
ip link set lo up
mount --make-rprivate /
mkdir {work}/etc {work}/root
cp -a /etc/. {work}/etc
mount --bind {work}/etc /etc
mount -t tmpfs -o mode=0755 tmpfs /var/lib
mount -t tmpfs -o mode=0755 tmpfs /opt
mkdir -p /opt/mev/bin /opt/mev/lib /opt/source /opt/python
cp {environment}/bin/mev /opt/mev/bin
ln -s /opt/python/bin/{python} /opt/mev/bin/python
echo "home = /opt/python/bin" >/opt/mev/pyvenv.cfg
mount --bind {base} /opt/python
sed -i '1s|^#!.*/bin/python.*|#!/opt/mev/bin/python|' /opt/mev/bin/mev
mount --bind {environment}/lib /opt/mev/lib
mount --bind {source} /opt/source
{steps}
mount --rbind / {work}/root
mount -o remount,bind,ro {work}/root
mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs {work}/root/tmp
cd {work}/root
exec chroot . {as_user} /usr/bin/env -i {variables} /bin/sh -c 'cd /var/lib/mev && exec {command}'
"""


class Container:
    """The last stage's command in mount, process and network namespaces of its own."""

    def __init__(self, work: Path) -> None:
        stage = stages()[-1]
        uid, _, gid = values(stage, "USER")[0].partition(":")
        self._as_user = (
            f"/usr/bin/setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs "
            "--bounding-set=-all --inh-caps=-all"
        ).split()
        entry = json.loads(values(stage, "ENTRYPOINT")[0]) + json.loads(values(stage, "CMD")[-1])
        # Here the package is installed as a link to its sources, and Python may be anywhere.
        moved = {"PYTHONPATH": "/opt/source", "LD_LIBRARY_PATH": "/opt/python/lib"}
        self._variables = [f"{name}={value}" for name, value in {**variables(), **moved}.items()]
        script = PREPARE.format(
            work=work,
            environment=ENVIRONMENT,
            base=sys.base_prefix,
            python=Path(sys.executable).resolve().name,
            source=ROOT / "src",
            steps="\n".join(each for each in values(stage, "RUN") if "apt-get" not in each),
            as_user=shlex.join(self._as_user),
            variables=shlex.join(self._variables),
            command=shlex.join(entry),
        )
        self.log = work / "log"
        namespaces = ["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", *namespaces, "sh", "-c", script],
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                stdout=log,
                stderr=log,
            )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the image's user."""
        inside = ["nsenter", "--target", str(self._first), "--mount", "--net", "--pid", "--root"]
        return subprocess.run(
            [*inside, *self._as_user, "/usr/bin/env", "-i", *self._variables, *command],
            capture_output=True,
            text=True,
            check=False,
        )

    def health(self) -> int:
        """Return the exit code of the health check, 1 while it cannot be run yet."""
        assert self._process.poll() is None, self.log.read_text()
        (value,) = values(stages()[-1], "HEALTHCHECK")
        try:
            return self.run(*json.loads(value.partition(" CMD ")[2])).returncode
        except IndexError:  # there is no process 1 yet
            return 1

    def stop(self) -> int:
        """Send the stop signal to process 1; return its exit code."""
        (name,) = values(stages()[-1], "STOPSIGNAL")
        os.kill(self._first, signal.Signals[name])
        return self._process.wait(60)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    @property
    def _first(self) -> int:
        parent = self._process.pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    if os.geteuid() != 0:
        require("namespaces for the steps of the image need root")
    for tool in ("unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(tool) is None:
            require(f"{tool} is not installed")
    running = Container(tmp_path_factory.mktemp("image"))
    try:
        yield running
    finally:
        running.kill()


@pytest.mark.slow
def test_image_becomes_healthy_without_privileges_and_stops_in_order(container: Container) -> None:
    until(container.health, lambda code: code == 0, "the image does not become healthy")
    status = container.run("cat", "/proc/1/status").stdout
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(found["Uid"].split()) == {"10001"}
    assert {int(found[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert found["NoNewPrivs"] == "1"
    for path in ("/x", "/usr/x", "/opt/mev/x", "/etc/x", "/var/lib/x"):
        assert container.run("touch", path).returncode != 0, path
    assert container.run("ls", "/var/lib/mev/data/runtime.json").returncode == 0
    assert container.stop() == 0, container.log.read_text()
