"""Agents as child processes, and waiting for what they report."""

import os
import signal
import subprocess
from pathlib import Path
from typing import IO

from tests.services.system import MEV, RunningSystem


class Fleet:
    """Agents as child processes of the test."""

    def __init__(self, system: RunningSystem) -> None:
        self._system = system
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, agent_id: str, output: IO[bytes] | None = None) -> None:
        """Run an agent of module arbitrage, which logs to a file of its own or to `output`."""
        with output or self._log(agent_id).open("ab") as log:
            command = [str(MEV), "agent", "run", "--module", "arbitrage", "--id", agent_id]
            self._processes[agent_id] = subprocess.Popen(
                command, env=self._system.environment, stdout=log, stderr=log
            )

    def run(self, name: str, *command: str | Path) -> None:
        """Run another program beside the agents."""
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*map(str, command)], env=self._system.environment, stdout=log, stderr=log
            )

    def signal(self, agent_id: str, number: signal.Signals) -> None:
        """Send a signal to an agent."""
        os.kill(self._processes[agent_id].pid, number)

    def logs(self) -> dict[str, str]:
        """Return what each agent logged."""
        return {agent_id: self._log(agent_id).read_text() for agent_id in self._processes}

    def close(self) -> None:
        """End every agent."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _log(self, agent_id: str) -> Path:
        return self._system.data_dir.with_name(f"{agent_id}.log")
