"""Ports of the loopback, and HTTP on them."""

import contextlib
import random
import socket
import urllib.error
import urllib.request
from pathlib import Path


def free_port() -> int:
    """One from below those that the kernel gives to outgoing connections, which would take it before its owner does."""
    given_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as s, contextlib.suppress(OSError):
            port = random.randrange(10_000, max(given_out, 20_000))
            s.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def get(url: str, data: bytes | None = None) -> tuple[int, str]:
    """Status and text of the answer, whatever the status; a POST if there is `data`."""
    try:
        with urllib.request.urlopen(url, data=data, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
