"""Two gateways on a Redis, and a proxy with TLS before them whose configuration is a block of docs/ingress.md."""

import asyncio
import contextlib
import json
import pathlib
import re
import socket
import ssl
import subprocess
import threading

from h2.connection import H2Connection
from h2.events import DataReceived, StreamReset
from websockets.asyncio.client import connect

from support import ROOT
from support.gateway import Gateway
from support.net import free_port
from support.process import Process
from support.proxies import HAProxy, Nginx
from support.tokens import SECRET, sign
from support.wait import DEADLINE, eventually

HOST = "realtime.example.com"
PROXIES = {"nginx": Nginx, "haproxy": HAProxy}


class Replica(Gateway):
    def __init__(self, folder: pathlib.Path, name: str, redis: int, config: str):
        text = (
            f'[server]\n{config}\n[broker]\nkind = "redis"\n[redis]\nurl = "redis://127.0.0.1:{redis}"\n'
            f'[[auth.keys]]\nsecret = "{SECRET}"\n'
            '[[channels]]\npattern = "post:{id}"\nallow = "authenticated"\n'
        )
        super().__init__(folder, name, text)

    def sockets(self) -> list[dict]:
        return self.json("/debug/connections")["connections"]


class Background:
    """An event loop in a thread: pings are answered while a test waits for something else.

    The library's client with threads uses one TLS object in two of them, and about one handshake in a hundred hangs.
    """

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)


class Socket:
    def __init__(self, background: Background, *args, **options):
        async def opened():
            return await connect(*args, **options)

        self.run, self.ws = background.run, background.run(opened())

    def recv(self) -> str:
        return self.run(self.ws.recv())

    def send(self, text: str):
        self.run(self.ws.send(text))

    def close(self):
        self.run(self.ws.close())

    def abort(self):
        """Ends the connection without a word, as a client does that gave it up."""

        async def aborted():
            self.ws.transport.abort()

        self.run(aborted())


def blocks(text: str) -> dict[str, str]:
    """The tested configurations of the page."""
    found = re.findall(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", text, re.S)
    assert len(found) == 2 and len(dict(found)) == 2, "one for nginx, one for HAProxy"
    return dict(found)


def here(text: str, changes: dict[str, str]) -> str:
    """The configuration with this machine's ports, paths and time-outs; each of them is in it, once."""
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the configuration"
        text = text.replace(old, new)
    return text


class Site:
    """What a client sees: the proxy's port."""

    # What a test has otherwise than the page.
    other: dict[str, str] = {}

    def __init__(self, proxy: str, folder: pathlib.Path, replicas: list[Replica], redis: int, quiet: int | None):
        self.proxy, self.folder, self.replicas, self.redis = proxy, folder, replicas, redis
        self.port, self.quiet = free_port(), quiet

    def configured(self) -> str:
        a, b = self.replicas
        changes = {"10.0.1.11:8000": f"127.0.0.1:{a.public}", "10.0.1.12:8000": f"127.0.0.1:{b.public}"}
        if self.proxy == "nginx":
            changes |= {
                "listen 443": f"listen 127.0.0.1:{self.port}",
                "/etc/nginx/tls/tls.crt": f"{self.folder}/tls.crt",
            }
            changes |= {"/etc/nginx/tls/tls.key": f"{self.folder}/tls.key", "/var/log/nginx/": f"{self.folder}/"}
            if self.quiet:
                changes["proxy_read_timeout 60s"] = f"proxy_read_timeout {self.quiet}s"
        else:
            changes |= {
                "bind :443": f"bind 127.0.0.1:{self.port}",
                "/etc/haproxy/tls/tls.pem": f"{self.folder}/tls.pem",
            }
            for replica in self.replicas:
                changes[f":{replica.public} port 9000"] = f":{replica.public} port {replica.admin}"
            if self.quiet:
                for name in ("client", "server", "tunnel"):
                    changes[f"timeout {name} 60s"] = f"timeout {name} {self.quiet}s"
        return here(blocks((ROOT / "docs/ingress.md").read_text())[self.proxy], changes | self.other)

    @contextlib.contextmanager
    def started(self):
        self.server: Process = PROXIES[self.proxy](self.folder, self.port, self.configured())
        with self.server, contextlib.ExitStack() as self.closing:
            self.background = self.closing.enter_context(contextlib.closing(Background()))
            eventually(f"{self.proxy} sees the replicas", lambda: self.status("/sse")[0] == 401)
            yield self

    def access_log(self) -> str:
        return (self.folder / "tollgate.log" if self.proxy == "nginx" else self.server.log).read_text()

    def token(self, user: str = "u1") -> str:
        return sign(user)

    def socket(self, source="127.0.0.1", token=None, headers=None, query="", direct=False) -> Socket:
        """A WebSocket, through the proxy or straight to the first replica, from an address of loopback."""
        context = ssl.create_default_context(cafile=self.folder / "tls.crt")
        address = f"ws://127.0.0.1:{self.replicas[0].public}" if direct else f"wss://{HOST}:{self.port}"
        port = self.replicas[0].public if direct else self.port
        headers = {"Authorization": f"Bearer {token or self.token()}", **(headers or {})} if not query else headers
        # Last: from here on the proxy's time-outs count.
        peer = socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=(source, 0))
        peer.setblocking(False)
        tls = {} if direct else {"ssl": context}
        options = {"proxy": None, "additional_headers": headers, "ping_interval": None, "compression": None} | tls
        return self.closing.enter_context(
            contextlib.closing(Socket(self.background, f"{address}/ws{query}", sock=peer, **options))
        )

    def stream(self, *options: str, query: str = "channels=post:1", token: str | None = None) -> subprocess.Popen:
        """curl on a stream; `lines` of its output come as the proxy passes them on."""
        auth = ["-H", f"Authorization: Bearer {token or self.token()}"]
        url = f"https://{HOST}:{self.port}/sse?{query}"
        command = ["curl", "-sN", *self.curl(), *auth, *options, url]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.closing.callback(child.wait)
        self.closing.callback(child.kill)
        return child

    def curl(self) -> list[str]:
        return ["--noproxy", "*", "--cacert", f"{self.folder}/tls.crt", "--resolve", f"{HOST}:{self.port}:127.0.0.1"]

    def status(self, path: str, *options: str) -> tuple[int, str]:
        """Status and HTTP version of an answer."""
        command = [
            "curl",
            "-s",
            "-m",
            str(DEADLINE),
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{http_version}",
            *self.curl(),
            *options,
        ]
        done = subprocess.run([*command, f"https://{HOST}:{self.port}{path}"], capture_output=True, text=True)
        code, version = done.stdout.split()
        return int(code), version

    def publish(self, channel: str, data: dict):
        command = ["redis-cli", "-p", str(self.redis), "PUBLISH", f"tollgate:{channel}", json.dumps(data)]
        subprocess.run(command, check=True, capture_output=True)


class Tunnel:
    """A WebSocket as browsers open it over HTTP/2: a stream of the connection (RFC 8441)."""

    def __init__(self, site: Site, token: str):
        context = ssl.create_default_context(cafile=site.folder / "tls.crt")
        context.set_alpn_protocols(["h2"])
        peer = socket.create_connection(("127.0.0.1", site.port), DEADLINE)
        self.tls = site.closing.enter_context(context.wrap_socket(peer, server_hostname=HOST))
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        self.came = b""
        self.until(lambda: self.h2.remote_settings.enable_connect_protocol)
        target = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "https",
            ":path": "/ws",
            ":authority": f"{HOST}:{site.port}",
        }
        headers = {
            "sec-websocket-version": "13",
            "origin": f"https://{HOST}:{site.port}",
            "authorization": f"Bearer {token}",
        }
        self.h2.send_headers(1, [*(target | headers).items()])

    def send(self, text: str):
        # A mask of zeros leaves the text as it is.
        self.h2.send_data(1, b"\x81" + bytes([0x80 | len(text)]) + bytes(4) + text.encode())

    def until(self, check):
        while not check():
            self.tls.sendall(self.h2.data_to_send())
            read = self.tls.recv(65536)
            assert read, "the connection ended"
            for event in self.h2.receive_data(read):
                assert not isinstance(event, StreamReset), event
                if isinstance(event, DataReceived):
                    self.came += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
