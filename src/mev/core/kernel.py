"""System calls by which a process restricts itself: Landlock, seccomp, capabilities.

A restriction applies to the calling thread and to the processes it starts: call these functions
before other threads run. A failed call raises :class:`OSError` and restricts nothing.
"""

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from enum import IntFlag
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
_CAP_SETUID = 7
_O_PATH = getattr(os, "O_PATH", 0)


class Access(IntFlag):
    """Rights of Landlock to files."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV
# No links, pipes, sockets or devices: a child needs none, and the parent reads the child's files.
OWN = (
    READ
    | Access.WRITE_FILE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.REFER
    | Access.TRUNCATE
)
_ON_FILES = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
# The rights that each version of the interface knows; those of later ones are the last's.
_KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL = (1 << 16) - 1
_TCP_SINCE, _SCOPES_SINCE = 4, 6
_TCP = 0b11
_SCOPES = 0b11
"""Abstract Unix sockets of others, and signals to others."""


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has, 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _ABI_VERSION)))


class Ruleset:
    """A Landlock ruleset for this process.

    Once enforced, it permits only the allowed files and folders, and TCP only if `tcp` is true.

    :raises OSError: when the kernel refuses it.
    """

    def __init__(self, *, tcp: bool) -> None:
        version = landlock_version()
        self._known = _KNOWN.get(version, _ALL)
        handled = (
            self._known,
            0 if tcp or version < _TCP_SINCE else _TCP,
            _SCOPES if version >= _SCOPES_SINCE else 0,
        )
        attributes = struct.pack("QQQ", *handled)[
            : 8 if version < _TCP_SINCE else 16 if version < _SCOPES_SINCE else 24
        ]
        self._ruleset = _checked(_libc().syscall(_CREATE_RULESET, attributes, len(attributes), 0))

    def allow(self, path: Path, access: Access) -> None:
        """Allow `access` to `path` and all files below it; ignore a path that does not exist."""
        try:
            place = os.open(path, _O_PATH | os.O_CLOEXEC)
        except OSError:  # it does not exist, or cannot be reached anyway
            return
        try:
            allowed = (
                int(access)
                & self._known
                & (_ALL if stat.S_ISDIR(os.fstat(place).st_mode) else int(_ON_FILES))
            )
            _checked(
                _libc().syscall(
                    _ADD_RULE, self._ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0
                )
            )
        finally:
            os.close(place)

    def enforce(self) -> None:
        """Enforce the rules permanently; call :func:`no_new_privileges` first."""
        _checked(_libc().syscall(_RESTRICT_SELF, self._ruleset, 0))

    def __enter__(self) -> "Ruleset":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ruleset)


def no_new_privileges() -> None:
    """Forbid programs that this process starts to gain privileges, such as by setuid files."""
    _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def forbid_tracing() -> None:
    """Forbid other processes of this user to trace this one.

    They cannot read its memory, environment and open files either.
    """
    if sys.platform == "linux":
        _checked(_libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def can_switch_user() -> bool:
    """Return whether this process has the capability to switch to another user."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(effective & 1 << _CAP_SETUID)


def switch_user(uid: int) -> None:
    """Switch this process permanently to the user `uid` and the group of the same number."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Drop all capabilities of this process permanently."""
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _checked(_libc().capset(header, nothing))


# Classic BPF: a load reads a field of `struct seccomp_data`; a jump has the number of instructions
# to skip when the comparison is true, and when it is false.
_LOAD, _JUMP_EQ, _JUMP_GE, _RETURN = 0x20, 0x15, 0x35, 0x06
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_X32 = 0x40000000
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The kernel's number of the processor, and the column of its call numbers in the tables below."""
# File permissions, which Landlock leaves to the owner: chmod, fchmod, fchmodat, fchmodat2, chown,
# lchown, fchown, fchownat, setxattr, lsetxattr, fsetxattr, setxattrat. Then setsid and setpgid, by
# which a process would outlive its job, and io_uring_setup, which bypasses this filter.
_FORBIDDEN = (
    *((90, None), (91, 52), (268, 53), (452, 452), (92, None), (94, None), (93, 55), (260, 54)),
    *((188, 5), (189, 6), (190, 7), (463, 463), (112, 157), (109, 154), (425, 425)),
)
# Limits and priority of another process, with the index of the argument that names it: prlimit64,
# sched_setaffinity, sched_setscheduler, sched_setparam, sched_setattr, setpriority, ioprio_set.
_OF_OTHERS = (
    ((302, 261), 0),
    ((203, 122), 0),
    ((144, 119), 0),
    ((142, 118), 0),
    ((314, 274), 0),
    ((141, 140), 1),
    ((251, 30), 1),
)
_SOCKET, _AF_UNIX = (41, 198), 1


def forbid_calls(*, tcp: bool) -> None:
    """Forbid system calls that Landlock does not restrict.

    These are Unix sockets (but not socket pairs), all other sockets unless `tcp`, because Landlock
    knows neither MPTCP nor TCP Fast Open nor UDP, changes of file permissions, limits and
    priorities of other processes, new sessions and process groups, and io_uring. On processors
    whose call numbers are not listed here, nothing is forbidden.
    """
    if platform.machine() not in _ARCHITECTURES:
        return
    architecture, column = _ARCHITECTURES[platform.machine()]
    deny, allow = (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQ, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_JUMP_GE, 0, 1, _X32),
        deny,
    ]
    for numbers in _FORBIDDEN:
        if (number := numbers[column]) is not None:
            program += [(_JUMP_EQ, 0, 1, number), deny]
    for each, argument in _OF_OTHERS:
        program += [
            (_JUMP_EQ, 0, 4, each[column]),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_JUMP_EQ, 0, 1, 0),
            allow,
            deny,
        ]
    if tcp:
        program += [
            (_JUMP_EQ, 0, 3, _SOCKET[column]),
            (_LOAD, 0, 0, _ARGUMENTS),
            (_JUMP_EQ, 0, 1, _AF_UNIX),
            deny,
        ]
    else:
        program += [(_JUMP_EQ, 0, 1, _SOCKET[column]), deny]
    program.append(allow)
    instructions = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *each) for each in program)
    )
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(instructions))
    no_new_privileges()
    _checked(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
