"""What the tests ask for: a Redis and a certificate for all of them, two gateways and a proxy for each."""

import contextlib
import pathlib

import pytest

from front import HOST, Replica, Site
from support.proxies import certificate
from support.redis import Redis


@pytest.fixture(scope="session")
def redis(tmp_path_factory) -> int:
    with Redis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.port


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tls")
    certificate(folder, HOST)
    return folder


@pytest.fixture
def start(tmp_path, redis, certificates):
    """Starts two replicas and a proxy: `start("nginx", server=…, limits=…, quiet=…)`."""
    for name in ("tls.crt", "tls.key", "tls.pem"):
        (tmp_path / name).write_text((certificates / name).read_text())
    # nginx' workers may be of another user.
    tmp_path.chmod(0o755)
    with contextlib.ExitStack() as stack:

        def started(
            proxy: str, server='trusted_proxies = ["127.0.0.1/32"]', rest="", quiet: int | None = None, other=None
        ) -> Site:
            replicas = [Replica(tmp_path, name, redis, f"{server}\n{rest}") for name in ("a", "b")]
            for replica in replicas:
                stack.enter_context(replica)
            site = Site(proxy, tmp_path, replicas, redis, quiet)
            site.other = other or {}
            return stack.enter_context(site.started())

        yield started
