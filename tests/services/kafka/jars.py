"""Jars of a server, resolved once by Maven from its pom.xml and cached for offline runs."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
JAVA_AT_LEAST = 17
_RESOLVE_S = 540


class JarsMissingError(Exception):
    """The server cannot run here; the message says what is missing."""


def java() -> str:
    """Find a Java that runs the servers."""
    path = shutil.which("java")
    if path is None:
        raise JarsMissingError(
            "java is not installed (Debian: apt-get install default-jre-headless)"
        )
    text = subprocess.run(
        [path, "-version"], capture_output=True, text=True, check=False, timeout=30
    ).stderr
    found = re.search(r'version "(\d+)', text)
    if found is None or int(found[1]) < JAVA_AT_LEAST:
        raise JarsMissingError(f"java is older than {JAVA_AT_LEAST}")
    return path


def classpath(pom: Path = POM) -> str:
    """Give the class path of the server and its tools."""
    if not _folder(pom).is_dir():
        _resolve(pom, _folder(pom))
    return f"{_folder(pom)}/*"


def _folder(pom: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        cache
        / "mev-tests"
        / f"{pom.parent.name}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    )


def _resolve(pom: Path, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsMissingError("mvn is not installed (Debian: apt-get install maven)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        jars = Path(scratch, "jars")
        _run_maven(
            [
                maven,
                "-q",
                "-B",
                "-f",
                str(pom),
                "dependency:copy-dependencies",
                f"-DoutputDirectory={jars}",
            ],
            folder.parent,
        )
        with suppress(OSError):  # another run was first, with the same jars
            jars.rename(folder)


def _run_maven(command: list[str], cache: Path) -> None:
    log = cache / "maven.log"
    with log.open("wb") as output:
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
                timeout=_RESOLVE_S,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            raise JarsMissingError(
                f"Maven could not resolve the server's jars (see {log})"
            ) from None
