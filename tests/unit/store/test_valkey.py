"""The embedded Valkey ends with the process that started it, and not before."""

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import redis

from mev.store.redis import RedisUnavailableError
from mev.store.valkey import EmbeddedValkey
from tests.services.waits import until

# Another thread than the main one starts it, as the running system does.
PARENT = """\
import sys, threading, time
from pathlib import Path
from mev.store.valkey import EmbeddedValkey

valkey = EmbeddedValkey(Path(sys.argv[1]), timeout_s=20)
starter = threading.Thread(target=valkey.start)
starter.start()
starter.join()
print(valkey.url, flush=True)
time.sleep(600)
"""


def pid_of(url: str) -> int:
    with closing(redis.Redis.from_url(url)) as client:
        return int(client.info("server")["process_id"])


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def test_a_kill_of_its_process_takes_it_along(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "valkey")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = pid_of(parent.stdout.readline().strip())
        assert runs(pid)
        parent.kill()
    until(lambda: not runs(pid))


def test_it_outlives_the_thread_that_started_it_keeps_what_it_has_and_is_stopped(
    tmp_path: Path,
) -> None:
    valkey = EmbeddedValkey(tmp_path / "valkey", timeout_s=20)
    for turn in (1, 2):
        starter = threading.Thread(target=valkey.start)
        starter.start()
        starter.join()
        with closing(redis.Redis.from_url(valkey.url)) as client:
            assert client.incr("turn") == turn
        pid = pid_of(valkey.url)
        valkey.stop()
        assert not runs(pid)


def test_one_that_cannot_start_says_why(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path / "valkey", timeout_s=20)
    (tmp_path / "valkey" / "appendonlydir").write_text("in the way")
    with pytest.raises(RedisUnavailableError, match=r"did not start: .*appendonly"):
        valkey.start()
