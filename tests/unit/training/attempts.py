"""Attempts of a hostile training process, which records the outcome of each."""

import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import orjson

from mev.jobs.context import Context

REACHED = "reached"
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_PROCESS_VM_READV, _PIDFD_OPEN, _PIDFD_GETFD = 310, 434, 438


def everything(context: Context) -> None:
    """Try all of it. The spec says where things lie that a real attacker would guess or find."""
    spec, parent = context.spec, os.getppid()
    data, key, proc = (
        Path(spec["data"]),
        Path(spec["data"], "control", "signing-key"),
        Path(f"/proc/{parent}"),
    )
    (context.output / "own").write_text("own")
    attempts: dict[str, Callable[[], object]] = {
        "key by path": key.read_bytes,
        "root key by path": (data / "control" / "root-key").read_bytes,
        "key by a relative path": Path("../../../control/signing-key").read_bytes,
        "key through the root of the parent": Path(f"{proc}/root{key}").read_bytes,
        "key through the folder of the parent": lambda: (
            Path(f"{proc}/cwd").joinpath("control/signing-key").read_bytes()
        ),
        "environment of the parent": (proc / "environ").read_bytes,
        "memory of the parent": lambda: (proc / "mem").open("rb").close(),
        "memory map of the parent": (proc / "maps").read_bytes,
        "open files of the parent": lambda: (proc / "fd" / "0").open("rb").close(),
        "memory of the parent by a call": lambda: read_memory(parent),
        "trace the parent": lambda: trace(parent),
        "open file of the parent by a call": lambda: take_file(parent),
        "signal to the parent": lambda: os.kill(parent, signal.SIGCONT),
        "secret in the environment": lambda: {
            name: os.environ[name] for name in ("MASTER_API_KEY", "CTRL_SIGN_SK_HEX")
        },
        "passwords of the machine": Path("/etc/shadow").read_bytes,
        "link to a key": lambda: named(context.output / "link", os.symlink, key),
        "second name of a key": lambda: named(context.output / "second", os.link, key),
        "rights of a key": lambda: key.chmod(0o666),
        "rights of a key by an attribute": lambda: os.setxattr(key, "user.mine", b"1"),
        "processor time of the parent": lambda: resource.prlimit(
            parent, resource.RLIMIT_CPU, (1 << 40, 1 << 40)
        ),
        "priority of the parent": lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
        "file in the data folder": (data / "new").touch,
        "key overwritten": lambda: key.write_bytes(b"mine"),
        "other job overwritten": lambda: Path(spec["other_job"]).write_bytes(b"mine"),
        "own job's state": lambda: Path("../state.json").write_bytes(b"{}"),
        "file elsewhere": lambda: Path(spec["elsewhere"]).write_bytes(b"mine"),
        "export changed": lambda: Path(spec["export"], "part").write_bytes(b"mine"),
        "export's rights changed": lambda: Path(spec["export"], "part").chmod(0o777),
        "Unix socket": lambda: socket.socket(socket.AF_UNIX).connect(str(data / "socket")),
        "MPTCP": lambda: socket.socket(proto=socket.IPPROTO_MPTCP).connect(
            ("127.0.0.1", spec["port"])
        ),
        "TCP Fast Open": lambda: socket.socket().sendto(
            b"x", socket.MSG_FASTOPEN, ("127.0.0.1", spec["port"])
        ),
        "UDP": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
        "TCP": lambda: socket.create_connection(("127.0.0.1", spec["port"]), timeout=2).close(),
        "process that outlives the job": lambda: subprocess.run(
            ["/bin/true"], start_new_session=True, check=True
        ),
        "back to root": lambda: os.setresuid(0, 0, 0) if os.getuid() else os.setgroups([0]),
    }
    found = {name: outcome(attempt) for name, attempt in attempts.items()}
    own = {
        "own file": outcome((context.output / "own").read_bytes),
        "export": outcome(Path(spec["export"], "part").read_bytes),
        "temporary file": outcome(lambda: Path("temporary").touch()),
    }
    facts = {
        line.split(":")[0]: line.split()[1:]
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":\t" in line
    }
    status = {name: facts[name] for name in ("Uid", "CapEff", "CapPrm", "NoNewPrivs")}
    (context.output / "found.json").write_bytes(
        orjson.dumps({"attacks": found, "own": own, "status": status})
    )


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, KeyError) as error:
        return type(error).__name__
    return REACHED


def named(name: Path, make: Callable[[Path, Path], None], key: Path) -> None:
    make(key, name)
    name.unlink()


def read_memory(pid: int) -> None:
    into = ctypes.create_string_buffer(8)
    ours, theirs = struct.pack("PN", ctypes.addressof(into), 8), struct.pack("PN", 0x400000, 8)
    called(_PROCESS_VM_READV, pid, ours, 1, theirs, 1, 0)


def trace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(_PTRACE_ATTACH, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0x40000000)
    libc.ptrace(_PTRACE_DETACH, pid, None, None)


def take_file(pid: int) -> None:
    called(_PIDFD_GETFD, called(_PIDFD_OPEN, pid, 0), 0, 0)


def called(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if (result := libc.syscall(number, *arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
