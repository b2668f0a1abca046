"""Confinement of child processes that run untrusted code: each gets what it needs and nothing else.

- Its environment holds variables of a fixed list, none of them secret.
- It runs as another user where the parent can switch users.
- Landlock allows its own folders, the folders passed to it and the installed software; TCP only
  on request.
- seccomp refuses Unix sockets, changes of file permissions, and changes of other processes' limits.

The parent describes the confinement; the child enters it (:func:`enter`) before it reads untrusted
input.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from mev.core import kernel
from mev.core.errors import UnavailableError
from mev.core.kernel import DEVICE, OWN, READ, Access

OTHER_USER = 60_900
OWN_FOLDER = "/proc/self/cwd"
"""Path of a child's working folder, also valid where the child cannot enter its parent folders."""

# Variables that are passed on; none may hold a secret.
_PASSED = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)
# PASSIVE: waiting OpenMP threads sleep. Spinning threads make a training many times slower when
# other processes use the CPUs too.
_DEFAULTS = {"LC_ALL": "C.UTF-8", "OMP_WAIT_POLICY": "PASSIVE"}
_SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/proc",
    "/sys/devices",
    "/sys/fs/cgroup",
    "/sys/bus/pci",
)
_CONFIGURATION = (
    *(
        "alternatives",
        "fonts",
        "group",
        "host.conf",
        "hosts",
        "ld.so.cache",
        "localtime",
        "nsswitch.conf",
        "passwd",
        "resolv.conf",
    ),
    *("ssl/certs", "ssl/openssl.cnf", "timezone"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_TIMEOUT_S = 60.0


class ConfinementError(UnavailableError):
    """Processes that run untrusted code cannot be confined on this system."""

    code = "confinement_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """Confinement of child processes by another user and by Landlock.

    `uid` is the user to switch to (None: the same user), `landlock` the version of Landlock (0:
    none). `missing` lists why one of them is not in force, with the remedy. With `required`, no
    child is started when neither is in force.
    """

    uid: int | None = None
    landlock: int = 0
    missing: tuple[str, ...] = ()
    required: bool = False

    def __str__(self) -> str:
        user = [] if self.uid is None else [f"user {self.uid}"]
        landlock = [f"Landlock {self.landlock}"] if self.landlock else []
        return " and ".join(user + landlock) or "none"

    @property
    def holds(self) -> bool:
        """Return whether the files of this process are protected from a child."""
        return self.uid is not None or self.landlock > 0

    def check(self) -> None:
        """Check that a child may be started.

        :raises ConfinementError: when confinement is required and not in force, with the reasons.
        """
        if self.required and not self.holds:
            raise ConfinementError(
                "TRAIN_CONFINEMENT is required, and this system offers none: "
                f"{'; '.join(self.missing)}"
            )

    def hand_over(self, path: Path) -> None:
        """Make the child's user the owner of a file or folder."""
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def make_folder(self, path: Path) -> None:
        """Create a folder that the child's user owns, if there is none.

        An existing folder of another user is removed first, with its content.
        """
        if path.exists() and path.lstat().st_uid != (
            os.geteuid() if self.uid is None else self.uid
        ):
            shutil.rmtree(path)
        if not path.exists():
            path.mkdir(mode=0o700)
            self.hand_over(path)

    def allow_reading(self, folder: Path) -> None:
        """Allow the child's user to read `folder` and its files through a descriptor of the folder.

        :raises ConfinementError: when the group of a file cannot be changed.
        """
        for path in (folder, *folder.iterdir()) if self.uid is not None else ():
            status = path.lstat()
            wanted = 0o050 if path == folder else 0o040
            if status.st_mode & wanted >> 3 == wanted >> 3:
                continue
            try:
                os.chown(path, -1, self.uid or 0, follow_symlinks=False)
                path.chmod(status.st_mode & 0o7777 | wanted)
            except OSError as error:
                raise ConfinementError(
                    f"{path} cannot be made readable for user {self.uid}: {error.strerror}; "
                    "keep exports on a file system "
                    "where root may change the group of a file (EXPORT_DIR)"
                ) from None

    @contextmanager
    def temporary_folder(self, prefix: str, within: Path | None = None) -> Iterator[Path]:
        """Yield a temporary folder that the child's user owns.

        It is created in `within` if the child runs as the same user.
        """
        with tempfile.TemporaryDirectory(
            prefix=prefix, dir=within if self.uid is None else None
        ) as name:
            self.hand_over(Path(name))
            yield Path(name)

    def parameters(
        self, *, own: Sequence[Path] = (), read: Sequence[str] = (), tcp: bool = False
    ) -> Mapping[str, Any]:
        """Return the parameters of :func:`enter` as JSON values.

        The child may write to the folders `own` and to its working folder, read the folders `read`,
        and use TCP if `tcp` is true.
        """
        return {
            "uid": self.uid,
            "landlock": self.landlock,
            "own": [str(path) for path in own],
            "read": list(read),
            "tcp": tcp,
        }


NOT_CONFINED = Confinement()


def strongest(
    uid: int = OTHER_USER, secrets: Path | None = None, *, required: bool = False
) -> Confinement:
    """Return the strongest confinement that this system offers. Blocks on the first call.

    `secrets` is a folder that children must not read.
    """
    return replace(_strongest(uid, secrets and secrets.resolve(), os.geteuid()), required=required)


def environment(temporary: str = OWN_FOLDER) -> Mapping[str, str]:
    """Return the environment of a child.

    It has the listed variables, the working folder as HOME, and `temporary` as TMPDIR.
    """
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return (
        _DEFAULTS
        | passed
        | {"HOME": OWN_FOLDER, "TMPDIR": temporary, "PYTHONDONTWRITEBYTECODE": "1"}
    )


def enter(parameters: Mapping[str, Any]) -> None:
    """Confine this process to its working folder and `parameters`.

    Call it before other threads run.

    :raises OSError: when it fails; the process must end then.
    """
    kernel.no_new_privileges()
    with (
        kernel.Ruleset(tcp=parameters["tcp"])
        if parameters["landlock"]
        else nullcontext() as ruleset
    ):
        if ruleset is not None:
            for path, access in _rules(parameters["own"], parameters["read"]):
                # before the switch: the other user may be unable to enter the parent folders
                ruleset.allow(path, access)
        if parameters["uid"] is not None:
            kernel.switch_user(parameters["uid"])
        else:
            kernel.drop_capabilities()
        if ruleset is not None:
            ruleset.enforce()
    if parameters["uid"] is not None or parameters["landlock"]:
        kernel.forbid_calls(tcp=parameters["tcp"])


def _rules(own: Iterable[str], read: Iterable[str]) -> Iterator[tuple[Path, Access]]:
    for path in (OWN_FOLDER, *own):
        yield Path(path), OWN
    for path in (*_SYSTEM, *(f"/etc/{name}" for name in _CONFIGURATION), *_software(), *read):
        yield Path(path), READ
    for device in (*(Path("/dev", name) for name in _DEVICES), *Path("/dev").glob("nvidia*")):
        yield device, DEVICE


def _software() -> set[str]:
    """Return the folders of Python, its libraries and this program."""
    program = str(Path(sys.executable).resolve().parent)
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return {
        sys.prefix,
        sys.base_prefix,
        program,
        *(path for path in (*sys.path, *libraries) if path),
    }


@lru_cache(maxsize=8)
def _strongest(uid: int, secrets: Path | None, _user: int) -> Confinement:
    missing = []
    landlock = kernel.landlock_version()
    if not landlock:
        missing.append(
            "the kernel has no Landlock (Linux 5.13 or newer, with `landlock` in its list of"
            " security modules)"
        )
    if landlock and (around := _around(secrets)):
        landlock = 0
        missing.append(
            f"Landlock cannot hide {secrets}: it lies in {around}, which children read; move it"
            " with MEV_DATA_DIR"
        )
    found = Confinement(landlock=landlock)
    if not kernel.can_switch_user():
        if not landlock:
            missing.append("only root can run children as another user")
        return replace(found, missing=tuple(missing))
    other = replace(found, uid=uid)
    if _starts(other):
        return replace(other, missing=tuple(missing))
    places = f"{Path(sys.executable).resolve()} or {sys.prefix}"
    missing.append(
        f"user {uid} (TRAIN_UID) cannot read {places}: install both where other users may read,"
        " not in the home of root"
    )
    return replace(found, missing=tuple(missing))


def _around(secrets: Path | None) -> str | None:
    if secrets is None:
        return None
    return next(
        (
            path
            for path in (*_SYSTEM, *sorted(_software()))
            if secrets.is_relative_to(Path(path).resolve())
        ),
        None,
    )


def _starts(confinement: Confinement) -> bool:
    """Return whether a child in this confinement can start and import the installed software."""
    with confinement.temporary_folder("mev-confine-") as folder:
        command = [
            sys.executable,
            "-P",
            "-s",
            "-m",
            "mev.core.confine",
            orjson.dumps(confinement.parameters()).decode(),
        ]
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=folder,
            env=environment(),
            timeout=_TIMEOUT_S,
            check=False,
        )
        return done.returncode == 0


def main() -> None:
    """Enter a confinement and check access to the installed software and the working folder."""
    enter(orjson.loads(sys.argv[1]))
    for path in _software():
        if Path(path).is_dir():
            os.scandir(path).close()
    importlib.import_module("numpy")
    Path(OWN_FOLDER, "written").touch()


if __name__ == "__main__":
    main()
