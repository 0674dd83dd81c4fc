"""What is broken for real in the live test, and which alerts have to say so."""

import asyncio
import os
import signal
import subprocess
import threading
import time

import redis

from clients import BAD, Clients
from relays import Relays
from stack import NICE, Replica, Stack
from support.redis import Redis
from support.wait import eventually

# Alerts that are not made to fire by the live test, and why. Their tests are in rules/.
NOT_LIVE = {
    "TollgateMemory": "figures of Kubernetes",
    "TollgateSentinelsUnreachable": "needs Sentinels",
}


def connections(gateway: Replica) -> float:
    return gateway.metric("tollgate_connections") or 0


class Way:
    """A way to Redis: to one of several servers, each connection to the next, and what they say comes late."""

    def __init__(self, loop, *ports: int):
        self.ports, self.turn, self.delay = list(ports), 0, 0.0
        self.server = asyncio.run_coroutine_threadsafe(self.listen(), loop).result(5)
        self.port = self.server.sockets[0].getsockname()[1]

    async def listen(self):
        # A task of its own for each: asyncio complains of a cancelled handler.
        return await asyncio.start_server(lambda *pair: asyncio.create_task(self.serve(*pair)) and None, "127.0.0.1", 0)

    async def serve(self, reader, writer):
        self.turn += 1
        try:
            back_reader, back_writer = await asyncio.open_connection(
                "127.0.0.1", self.ports[self.turn % len(self.ports)]
            )
            await asyncio.gather(self.pipe(reader, back_writer, False), self.pipe(back_reader, writer, True))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def pipe(self, reader, writer, late: bool):
        """Late data waits in a queue, so that what comes behind it waits no longer."""
        queue: asyncio.Queue = asyncio.Queue()

        async def pass_on():
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - time.monotonic()))
                writer.write(data)

        passing = asyncio.create_task(pass_on())
        try:
            while data := await reader.read(65536):
                queue.put_nowait((time.monotonic() + (self.delay if late else 0), data))
        finally:
            passing.cancel()
            writer.close()


class Faults:
    """Each in a namespace of its own where it would hide another one."""

    def __init__(self, stack: Stack, clients: Clients, relays: Relays, a: Replica, b: Replica, storm: Replica):
        self.stack, self.clients, self.relays = stack, clients, relays
        self.a, self.b, self.storm = a, b, storm
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []
        self.redis = redis.Redis(port=stack.redis.port)

    def repeat(self, every: float, act):
        def loop():
            while not self.over.wait(every):
                act()

        self.threads.append(threading.Thread(target=loop, daemon=True))
        self.threads[-1].start()

    def begin(self):
        self.tokens_and_application()
        self.clients_and_limits()
        self.replicas()
        self.redis_trouble()
        self.relays.trouble(self.over)

    def tokens_and_application(self):
        self.stack.app.broken = True  # TollgateKeySetFetchFailing, TollgateCallbacksFailing
        c = self.clients
        c.go("asks", *[c.asks(0.5) for _ in range(3)])
        c.go("bad", *[c.attempts(0.25, self.a, secret=BAD) for _ in range(5)])  # TollgateBadSignatures, TokensRefused
        stranger = self.stack.app.token("unknown")
        c.go("unknown", *[c.attempts(0.3, self.a, bearer=stranger) for _ in range(2)])  # TollgateKeysUnavailable
        self.redis.set("gateway:tollgate:issuer:web", "0123456789abcdef")  # TollgateKeyDrift

    def clients_and_limits(self):
        c = self.clients
        c.go("storm", *[c.hammer(self.storm) for _ in range(6)])  # TollgateReconnectStorm
        self.b.configure(connections=int(connections(self.b) * 0.9))  # TollgateNearCapacity, TollgateLimitReached
        c.go("more", *[c.attempts(0.5, self.b) for _ in range(3)])

    def replicas(self):
        self.a.write("this is no configuration [")  # TollgateConfigReloadFailed
        drains = self.stack.gateway("stuck-0", "stuck", broker="memory", window="10m")
        self.clients.go("stuck", *[self.clients.socket(drains) for _ in range(3)])
        crashes = self.stack.gateway("crash-0", "crash", broker="memory")
        calm = self.stack.gateway("crash-1", "crash", broker="memory")
        self.clients.go("calm", *[self.clients.socket(calm) for _ in range(40)])
        eventually("forty clients", lambda: connections(calm) == 40)
        drains.send(signal.SIGTERM)  # TollgateDrainStuck
        (self.stack.folder / "mute-0.log").symlink_to("/dev/full")  # TollgateLogLinesDropped
        mute = self.stack.gateway("mute-0", "mute", broker="memory")
        self.clients.go("unheard", self.clients.attempts(0.5, mute, secret=BAD))
        files = len(os.listdir(f"/proc/{calm.pid}/fd"))
        limit = f"--nofile={int(files * 1.08)}"  # TollgateFileDescriptors
        subprocess.run(["prlimit", "--pid", str(calm.pid), limit], check=True)
        for _ in range(4):  # TollgateRestarting
            time.sleep(2.5)  # Two scrapes, of which one may come late.
            crashes.end()
            crashes.start()
        time.sleep(1.5)
        crashes.end()  # TollgateReplicaDown

    def redis_trouble(self):
        c = self.clients
        # TollgateRedisFlapping, TollgateGaps
        self.repeat(6, lambda: self.redis.client_kill_filter(_type="pubsub"))
        other = self.stack.run(Redis(self.stack.folder, nice=NICE))
        # TollgateRedisSlow, TollgateDeliverySlow, and there too TollgateSlowConsumers.
        late = Way(c.loop, other.port)
        slow = self.stack.gateway("slow-0", "slow", redis=late.port, patience="9s")
        c.go(
            "slowed",
            *[c.socket(slow, ["room:1"]) for _ in range(20)],
            *[c.sluggard(slow, "fat:1") for _ in range(15)],
            c.publish(0.05, lambda _: "fat:1", 50_000, port=other.port),
            c.publish(0.08, lambda _: "room:1", durable=True, port=other.port),
        )
        late.delay = 1.2
        # TollgateCanaryMissed: publications go to another server than subscriptions.
        parted = Way(c.loop, self.stack.redis.port)
        self.stack.gateway("deaf-0", "deaf", redis=parted.port)
        parted.ports.append(other.port)
        self.redis.set("gateway:tollgate:revoked", "no set")  # TollgateRevocationsUnreadable
        self.redis.client_kill_filter(_type="pubsub")

    def outage(self):
        """TollgateRedisLost."""
        self.over.set()
        for thread in self.threads:
            thread.join()
        self.stack.redis.end()

    def blackout(self):
        """TollgateDown, TollgateConnectionsCollapsed."""
        for gateway in [g for g in self.stack.targets if g.job == "tollgate" and g.namespace == "live"]:
            gateway.end()
