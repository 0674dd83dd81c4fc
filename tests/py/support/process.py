"""Child processes, with their output in files."""

import os
import signal
import subprocess
from pathlib import Path

from support.wait import eventually


class Process:
    """A program whose output is added to FOLDER/NAME.log: `with` starts it, waits until it is ready, and kills it.

    It leads a process group, which signals reach as a whole: nginx' workers go with their master.
    """

    child: subprocess.Popen

    def __init__(self, folder: Path, name: str, *command, env: dict[str, str] | None = None, nice: int = 0):
        self.folder, self.name, self.log = folder, name, folder / f"{name}.log"
        self.command = [*(["nice", "-n", str(nice)] if nice else []), *map(str, command)]
        self.env = env

    def start(self):
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(f"{self.name} is ready", self.alive_and_ready)
        except BaseException:
            print(f"--- {self.name}:\n{self.tail()}")
            self.end()
            raise

    def alive_and_ready(self) -> bool:
        assert self.child.poll() is None, f"{self.name} has ended"
        return self.is_ready()

    def is_ready(self) -> bool:
        """What `start` waits for."""
        return True

    def tail(self) -> str:
        # The file may be a device that never ends.
        return self.log.read_text()[-3000:] if self.log.is_file() else ""

    @property
    def pid(self) -> int:
        return self.child.pid

    def send(self, what: signal.Signals):
        if self.child.poll() is None:
            os.killpg(self.pid, what)

    def end(self, what: signal.Signals = signal.SIGKILL) -> int:
        """The exit code; who was stopped goes on, and who does not end in 20 seconds is killed."""
        self.send(signal.SIGCONT)
        self.send(what)
        try:
            return self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self.child.wait()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        if kind:
            print(f"--- {self.name}:\n{self.tail()}")
        self.end()
