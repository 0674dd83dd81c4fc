"""The relay's unit: what it has of the gateway's, and that the relay runs with it and nothing else."""

import shlex
import signal

from support.gateway import Admin
from support.net import free_port
from support.postgres import Postgres
from support.process import Process
from support.redis import Redis
from support.wait import eventually
from units import PACKAGING, environment, unit

GATEWAY, RELAY = (unit((PACKAGING / f"{name}.service").read_text()) for name in ("tollgate", "tollgate-relay"))


def test_it_is_shut_in_as_the_gateway_is():
    """What each says for itself is here; all else is the same line for line."""
    own = {"User", "Group", "EnvironmentFile", "ExecStart", "TimeoutStopSec"}
    assert {name for name in RELAY if GATEWAY.get(name) != RELAY[name]} == own
    # The relay reads its configuration at the start, and has a few connections.
    assert {name for name in GATEWAY if name not in RELAY} == {"ExecReload", "LimitNOFILE"}


def test_no_user_and_no_file_is_the_gateways():
    for name in ("User", "Group", "EnvironmentFile"):
        assert RELAY[name] != GATEWAY[name]
    assert RELAY["ExecStart"].split()[-1] != GATEWAY["ExecStart"].split()[-1]


class Machine(Admin):
    """A folder for /etc/tollgate-relay, and what the relay of it needs."""

    def __init__(self, folder, binary: str, postgres: Postgres, redis: Redis):
        self.folder, self.binary, self.admin = folder / "etc", binary, free_port()
        self.folder.mkdir()
        (self.folder / "tollgate.toml").write_text(
            f'[admin]\nlisten = "127.0.0.1:{self.admin}"\n[broker]\nkind = "redis"\n'
            f'[redis]\nurl = "redis://127.0.0.1:{redis.port}"\n'
        )
        text = (PACKAGING / "tollgate-relay.env").read_text()
        example = "#TOLLGATE_RELAY__URL='postgres://user@db/shop?sslmode=verify-full'"
        assert text.count(example) == 1
        url = postgres.url("postgres", "relay")
        (self.folder / "tollgate.env").write_text(text.replace(example, f"TOLLGATE_RELAY__URL='{url}?sslmode=disable'"))

    def here(self, text: str) -> str:
        return text.replace("/etc/tollgate-relay", str(self.folder)).replace("/usr/local/bin/tollgate", self.binary)


def test_systemd(tollgate, tmp_path):
    with Postgres(tmp_path) as postgres, Redis(tmp_path) as redis:
        postgres.migrate(tollgate)
        machine = Machine(tmp_path, tollgate, postgres, redis)
        env = environment(machine.here(RELAY["EnvironmentFile"]))
        command = shlex.split(machine.here(RELAY["ExecStart"]))
        for n in range(1, 3):
            with Process(tmp_path, "relay", *command, env=env) as process:
                eventually("ready", machine.is_ready)
                postgres.sql("""SELECT tollgate_publish('user:1', '{"type":"order"}')""")
                eventually("published", lambda: machine.metric("tollgate_relay_published_total") == 1)
                process.send(signal.SIGTERM)
                assert process.child.wait(timeout=int(RELAY["TimeoutStopSec"])) == 0
            assert postgres.sql("SELECT count(*) FROM tollgate_outbox WHERE published_at IS NOT NULL") == str(n)
        (machine.folder / "tollgate.toml").write_text("[relay]\nretension = 5\n")
        with Process(tmp_path, "wrong", *command, env=env) as process:
            assert str(process.child.wait(timeout=10)) == RELAY["RestartPreventExitStatus"]
