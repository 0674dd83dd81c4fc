"""Relays and outboxes in the live test: those that are well, and those that are not."""

import subprocess
import threading
import time

from stack import NICE, Stack
from support.gateway import Admin, binary
from support.net import free_port, listens
from support.postgres import Postgres
from support.process import Process

CONFIG = """
[admin]
listen = "127.0.0.1:{admin}"
[broker]
kind = "redis"
[redis]
url = "redis://127.0.0.1:{redis}"
[[channels]]
pattern = "user:{{user}}"
allow = "owner"
history = {{ size = 100, ttl = "10m" }}
[relay]
url = "{url}"
connect_timeout = "2s"
"""


class Relay(Admin, Process):
    def __init__(self, stack: Stack, name: str, namespace: str, url: str, redis: int | None = None):
        self.admin, self.namespace, self.job = free_port(), namespace, "tollgate-relay"
        config = stack.folder / f"{name}.toml"
        config.write_text(CONFIG.format(admin=self.admin, redis=redis or stack.redis.port, url=url))
        super().__init__(stack.folder, name, binary(), "relay", "--config", config, nice=NICE)

    def is_ready(self) -> bool:
        """Some of them are never ready to relay."""
        return listens(self.admin)


class Outbox(threading.Thread):
    """A database with an outbox, and an application that writes into it until it is closed."""

    def __init__(self, postgres: Postgres, database: str, every: float, statement):
        super().__init__(daemon=True)
        self.postgres, self.database, self.every, self.statement = postgres, database, every, statement
        self.over = threading.Event()
        if database != "postgres":
            postgres.sql(f"CREATE DATABASE {database}")
        postgres.migrate(binary(), database)
        self.start()

    @property
    def url(self) -> str:
        return self.postgres.url(self.database, "relay")

    def run(self):
        command = self.postgres.psql(self.database)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as psql:
            n = 0
            while not self.over.wait(self.every):
                psql.stdin.write(self.statement(n) + "\n")
                psql.stdin.flush()
                n += 1

    def close(self):
        self.over.set()
        self.join()


def publish(channel: str, n: int) -> str:
    return f'SELECT tollgate_publish(\'{channel}\', \'{{"type":"row","n":{n}}}\');'


class Relays:
    def __init__(self, stack: Stack):
        self.stack = stack
        self.postgres = stack.run(Postgres(stack.folder, nice=NICE))
        self.outboxes: list[Outbox] = []
        good = self.outbox("postgres", 0.2, lambda n: publish(f"user:u{n % 60}", n))
        self.pair = [self.relay(f"relay-{n}", "live", good.url) for n in range(2)]

    def outbox(self, database: str, every: float, statement) -> Outbox:
        self.outboxes.append(Outbox(self.postgres, database, every, statement))
        return self.outboxes[-1]

    def relay(self, name: str, namespace: str, url: str, **more) -> Relay:
        relay = self.stack.run(Relay(self.stack, name, namespace, url, **more))
        self.stack.target(relay)
        return relay

    def take_turns(self, over: threading.Event):
        """The database lets in one of two relays, then the other."""
        out = 0
        while not over.wait(4):
            self.postgres.sql(
                f"ALTER ROLE turn{out} NOLOGIN; ALTER ROLE turn{1 - out} LOGIN;"
                f" SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'turn{out}'"
            )
            out = 1 - out

    def trouble(self, over: threading.Event):
        self.relay("unled-0", "unled", f"postgres://relay@127.0.0.1:{free_port()}/shop")  # NoLeader, PostgresDown
        gone = self.relay("gone-0", "gone", self.outboxes[0].url)
        turns = self.outbox("turns", 1, lambda n: publish("user:u1", n))
        for n in range(2):
            self.postgres.sql(f"CREATE ROLE turn{n} LOGIN IN ROLE tollgate_relay")
            self.relay(f"turns-{n}", "turns", turns.url.replace("relay@", f"turn{n}@"))
        threading.Thread(target=self.take_turns, args=[over], daemon=True).start()  # TollgateRelayFlapping
        behind = self.outbox("behind", 1, lambda n: publish("user:u1", n))
        self.relay("behind-0", "behind", behind.url, redis=free_port())  # TollgateRelayBehind
        # TollgateRelaySlow: transactions that take their time.
        slow = self.outbox("slow", 3, lambda n: f"BEGIN; {publish('user:u1', n) * 60} SELECT pg_sleep(3); COMMIT;")
        self.relay("late-0", "late", slow.url)
        dead = self.outbox("dead", 1, lambda n: publish("user:undefined", n))  # TollgateRelayDeadRows
        self.relay("dead-0", "dead", dead.url)
        time.sleep(1.5)
        gone.end()  # TollgateRelayDown, TollgateRelayReplicaDown

    def close(self):
        for outbox in self.outboxes:
            outbox.close()
