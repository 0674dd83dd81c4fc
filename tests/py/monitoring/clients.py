"""Clients, good and bad, and publishers: one thread with an event loop for all of them."""

import asyncio
import itertools
import json
import random
import socket
import threading

import redis.asyncio
import websockets

from stack import API_KEY, Replica
from support.tokens import SECRET, sign

BAD = f'"{SECRET}"'  # with the quotes that an env file kept


class Clients:
    def __init__(self, redis_port: int):
        self.redis_port = redis_port
        # Where clients find gateways, as behind a balancer: the test takes out those that drain.
        self.pool: list[Replica] = []
        self.errors: list[str] = []
        self.numbers = itertools.count()
        self.loop = asyncio.new_event_loop()
        self.tasks: dict[str, list] = {}
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def go(self, name: str, *coroutines):
        for coroutine in coroutines:
            self.tasks.setdefault(name, []).append(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def stop(self, *names: str):
        for name in names or list(self.tasks):
            for task in self.tasks.pop(name, []):
                task.cancel()

    def died(self) -> list[str]:
        """None of them may end by itself."""
        return [f"{name}: {task.exception()!r}" for name, tasks in self.tasks.items() for task in tasks if task.done()]

    def close(self):
        async def end():
            # What ends may begin something else: a few times, until nothing is left.
            for _ in range(5):
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                if not tasks:
                    return
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=1)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)

    # Good ones

    async def socket(
        self, gateway: Replica | None = None, channels=(), stay: float = 1e9, pause=(0.05, 1.0), **connect
    ):
        """Connects, subscribes, reads, and comes back as clients do."""
        user = f"u{next(self.numbers)}"
        while True:
            at = gateway or random.choice(self.pool or [None])
            if at:
                try:
                    await asyncio.wait_for(self.session(at, user, channels, **connect), stay * random.uniform(0.7, 1.3))
                except (TimeoutError, OSError, websockets.WebSocketException):
                    pass
            await asyncio.sleep(random.uniform(*pause))

    async def session(self, gateway: Replica, user: str, channels, format="plain", secret=SECRET, bearer=None):
        url = f"ws://127.0.0.1:{gateway.public}/ws" + ("" if format == "plain" else f"?format={format}")
        headers = {"Authorization": f"Bearer {bearer or sign(user, secret)}"}
        async with websockets.connect(
            url, additional_headers=headers, compression=None, close_timeout=1, open_timeout=5
        ) as ws:
            for channel in channels:
                await ws.send(json.dumps({"type": "subscribe", "channel": channel}))
            async for message in ws:
                if '"reconnect"' in message:
                    return

    async def stream(self, channels: str):
        """Server-sent events, resumed with the last id."""
        user, last = f"u{next(self.numbers)}", None
        while True:
            try:
                at = random.choice(self.pool)
                reader, writer = await asyncio.open_connection("127.0.0.1", at.public)
                resume = f"Last-Event-ID: {last}\r\n" if last else ""
                writer.write(
                    (
                        f"GET /sse?channels={channels} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sign(user)}\r\n"
                        f"{resume}\r\n"
                    ).encode()
                )
                while line := await reader.readline():
                    if line.startswith(b"id:"):
                        last = line[3:].strip().decode()
                writer.close()
            except (OSError, IndexError):
                pass
            await asyncio.sleep(random.uniform(0.5, 1.0))

    # Bad ones

    async def attempts(self, every: float, gateway: Replica | None = None, **how):
        """Attempts to connect, one after the other, that are refused or end at once."""
        while True:
            at = gateway or random.choice(self.pool)
            try:
                await asyncio.wait_for(self.session(at, f"u{next(self.numbers)}", (), **how), 2)
            except (TimeoutError, OSError, websockets.WebSocketException):
                pass
            await asyncio.sleep(every)

    async def hammer(self, gateway: Replica):
        """Connects and leaves at once, without end."""
        while True:
            try:
                url = f"ws://127.0.0.1:{gateway.public}/ws"
                async with websockets.connect(
                    url,
                    additional_headers={"Authorization": f"Bearer {sign('hammer')}"},
                    compression=None,
                    close_timeout=1,
                ) as ws:
                    await ws.recv()
            except (OSError, websockets.WebSocketException):
                pass
            await asyncio.sleep(0.1)

    async def asks(self, every: float):
        """Subscribes to a channel that the application decides on, a new one each time."""
        while True:
            try:
                async with websockets.connect(
                    f"ws://127.0.0.1:{self.pool[0].public}/ws",
                    compression=None,
                    close_timeout=1,
                    additional_headers={"Authorization": f"Bearer {sign('asker')}"},
                ) as ws:
                    reading = asyncio.create_task(self.ignore(ws))
                    while not reading.done():
                        channel = f"ask:{next(self.numbers)}"
                        for what in ("subscribe", "unsubscribe"):
                            await ws.send(json.dumps({"type": what, "channel": channel}))
                        await asyncio.sleep(every)
            except (OSError, websockets.WebSocketException):
                pass
            await asyncio.sleep(every)

    @staticmethod
    async def ignore(ws):
        try:
            async for _ in ws:
                pass
        except websockets.WebSocketException:
            pass

    async def sluggard(self, gateway: Replica, channel: str):
        """A stream that is not read, until it is closed; then again."""
        while True:
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                s.setblocking(False)
                try:
                    await self.loop.sock_connect(s, ("127.0.0.1", gateway.public))
                    await self.loop.sock_sendall(
                        s,
                        f"GET /sse?channels={channel} HTTP/1.1\r\nHost: x\r\n"
                        f"Authorization: Bearer {sign('sluggard')}\r\n\r\n".encode(),
                    )
                    await asyncio.sleep(random.uniform(2, 6))
                except OSError:
                    pass
            await asyncio.sleep(0.1)

    # Publishers

    async def publish(self, every: float, channel, size: int = 100, durable: bool = False, port: int | None = None):
        """`channel` makes a name of a number."""
        async with redis.asyncio.Redis(port=port or self.redis_port, socket_timeout=2) as client:
            for n in itertools.count():
                event = json.dumps({"type": "tick", "n": n, "x": "x" * size})
                name = f"tollgate:{channel(n)}"
                try:
                    if durable:
                        await client.fcall("tollgate_publish", 1, name, event)
                    else:
                        await client.publish(name, event)
                except (redis.RedisError, OSError):
                    await asyncio.sleep(0.5)
                await asyncio.sleep(every)

    async def api(self, every: float, method: str, body):
        """Calls of the server API; `body` makes one of a number."""
        for n in itertools.count():
            try:
                at = random.choice(self.pool)
                reader, writer = await asyncio.open_connection("127.0.0.1", at.public)
                text = json.dumps(body(n))
                writer.write(
                    (
                        f"POST /api/{method} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nConnection: close\r\n"
                        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
                    ).encode()
                )
                await reader.read()
                writer.close()
            except (OSError, IndexError):
                pass
            await asyncio.sleep(every)
