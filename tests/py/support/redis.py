"""A Redis that keeps nothing."""

from pathlib import Path

from support.net import free_port, listens
from support.process import Process


class Redis(Process):
    def __init__(self, folder: Path, nice: int = 0):
        self.port = free_port()
        listen = ["--port", self.port, "--bind", "127.0.0.1"]
        name = f"redis-{self.port}"
        super().__init__(folder, name, "redis-server", *listen, "--save", "", "--dir", folder, nice=nice)

    def is_ready(self) -> bool:
        return listens(self.port)
