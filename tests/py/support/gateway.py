"""The gateway, and what it says on its administrative port."""

import json
import os
import re
from pathlib import Path

from support.net import free_port, get
from support.process import Process


def binary(variable: str = "TOLLGATE_BIN") -> str:
    path = os.environ.get(variable, "")
    assert os.access(path, os.X_OK), f"{variable} names no binary"
    return path


class Admin:
    """A gateway as operators see it, whoever started it."""

    admin: int

    def get(self, path: str, data: bytes | None = None) -> tuple[int, str]:
        return get(f"http://127.0.0.1:{self.admin}{path}", data)

    def json(self, path: str, data: bytes | None = None):
        return json.loads(self.get(path, data)[1])

    def is_ready(self) -> bool:
        return self.json("/readyz")["ready"]

    def metrics(self) -> str:
        return self.get("/metrics")[1]

    def metric(self, name: str) -> float | None:
        """The sum of a metric's series, or the one series whose labels are in `name`; None if there is none."""
        found = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, found)) if found else None


class Gateway(Admin, Process):
    """One on two ports of its own, whatever its configuration says of them."""

    def __init__(self, folder: Path, name: str, config: str, nice: int = 0):
        self.public, self.admin = free_port(), free_port()
        self.config = folder / f"{name}.toml"
        self.write(config)
        command = [binary(), "serve", "--config", self.config]
        listen = ["--listen", f"127.0.0.1:{self.public}", "--admin-listen", f"127.0.0.1:{self.admin}"]
        super().__init__(folder, name, *command, *listen, nice=nice)

    def write(self, config: str):
        """The configuration, anew; a running gateway takes it within seconds, and never half of it."""
        new = self.config.with_suffix(".new")
        new.write_text(config)
        new.rename(self.config)
