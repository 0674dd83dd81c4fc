"""Redis, gateways, an application beside them, and Prometheus, on free ports of the loopback."""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

SECRET = "the secret of the monitoring test, long enough"
API_KEY = "the-key-of-the-monitoring-test"
GATEWAY = os.environ.get("TOLLGATE_BIN", "")
LOAD = os.environ.get("TOLLGATE_LOAD_BIN", "")


def free_port() -> int:
    """One that no client gets as its own between now and its use: from below those which the kernel gives out."""
    given_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", random.randrange(10_000, given_out)))
                return s.getsockname()[1]
            except OSError:
                pass


def wait(what: str, condition, seconds: float = 20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = condition()
            if found:
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds:.0f} s for: {what}")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


class Process:
    all: list["Process"] = []

    def __init__(self, folder: Path, name: str, command: list, env: dict | None = None):
        self.name, self.log = name, folder / f"{name}.log"
        # Behind everything else on the machine; what is measured here is no speed.
        Process.all.append(self)
        nice = ["nice", "-n", "10", *map(str, command)]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(nice, stdout=log, stderr=log, env={**os.environ, **(env or {})})

    def send(self, what):
        if self.child.poll() is None:
            self.child.send_signal(what)

    def end(self, what=signal.SIGKILL):
        self.send(signal.SIGCONT)
        self.send(what)
        try:
            return self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


class Redis(Process):
    def __init__(self, folder: Path, port: int | None = None):
        self.port = port or free_port()
        super().__init__(folder, f"redis-{self.port}", ["redis-server", "--port", self.port, "--bind", "127.0.0.1",
                                                        "--save", "", "--dir", folder])
        wait("Redis", lambda: socket.create_connection(("127.0.0.1", self.port), 1))


class Application(ThreadingHTTPServer):
    """What an application offers to the gateway: its key set, and who may subscribe. `broken`: nothing."""

    def __init__(self):
        self.broken = False
        self.key = ec.generate_private_key(ec.SECP256R1())
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        self.keys = json.dumps({"keys": [{**jwk, "kid": "known", "alg": "ES256", "use": "sig"}]})
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def token(self, kid: str) -> str:
        claims = {"sub": "stranger", "exp": int(time.time()) + 3600}
        return jwt.encode(claims, self.key, "ES256", headers={"kid": kid})


class Answer(BaseHTTPRequestHandler):
    server: Application

    def answer(self, text: str):
        self.send_response(500 if self.server.broken else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.answer(self.server.keys)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer('{"allow":true}')

    def log_message(self, *_):
        pass


CONFIG = """
[broker]
kind = "{broker}"
[redis]
url = "redis://127.0.0.1:{redis}"
ping_timeout = "{patience}"
command_timeout = "{patience}"
canary_deadline = "{patience}"
[auth.jwks]
refresh = "2s"
min_interval = "1s"
[[auth.keys]]
secret = "{secret}"
[[auth.keys]]
jwks_url = "http://127.0.0.1:{app}/keys"
[[channels]]
pattern = "user:{{user}}"
allow = "owner"
auto_subscribe = true
history = {{ size = 100, ttl = "10m" }}
[[channels]]
pattern = "room:{{id}}"
allow = "authenticated"
history = {{ size = 1000, ttl = "10m" }}
[[channels]]
pattern = "ask:{{id}}"
allow = "callback"
[[channels]]
pattern = "{{kind}}:{{id}}"
allow = "authenticated"
[callback]
url = "http://127.0.0.1:{app}/may"
[drift]
issuers = ["web"]
interval = "1s"
[doctor]
per_second = 5
[limits]
refusal_wait = "0s"
connections = {connections}
queue_bytes = 262144
publication_bytes = 262144
[drain]
settle = "1s"
window = "{window}"
[api]
keys = ["{key}"]
"""


class Gateway(Process):
    def __init__(self, stack: "Stack", name: str, namespace: str = "live", **settings):
        self.namespace, self.pod = namespace, name
        self.public, self.admin = free_port(), free_port()
        self.file = stack.folder / f"{name}.toml"
        app = stack.app if namespace == "live" else stack.other_app
        self.settings = {"broker": "redis", "redis": stack.redis.port, "app": app.server_port, "secret": SECRET,
                         "patience": "3s", "connections": 5000, "window": "5s", "key": API_KEY, **settings}
        self.stack = stack
        self.configure()
        self.start()

    def configure(self, **settings):
        """Writes the file anew; a running gateway takes it within seconds."""
        self.settings.update(settings)
        new = self.file.with_suffix(".new")
        new.write_text(CONFIG.format(**self.settings))
        new.rename(self.file)

    def start(self):
        super().__init__(self.stack.folder, self.pod, [
            GATEWAY, "serve", "--config", self.file, "--listen", f"127.0.0.1:{self.public}",
            "--admin-listen", f"127.0.0.1:{self.admin}"])
        self.ready()

    def ready(self):
        def ready():
            if self.child.poll() is not None:
                raise RuntimeError(f"{self.pod} has ended:\n{self.log.read_text()[-1000:]}")
            return '"ready":true' in get(f"http://127.0.0.1:{self.admin}/readyz")
        wait(f"{self.pod} is ready", ready)

    def pid(self) -> int:
        return self.child.pid

    def metrics(self) -> str:
        return get(f"http://127.0.0.1:{self.admin}/metrics")


class Stack:
    def __init__(self, folder: Path):
        self.folder = folder
        self.app = Application()
        # That of the gateways in other namespaces, which is never broken.
        self.other_app = Application()
        self.redis = Redis(folder)
        # What Prometheus scrapes.
        self.targets: list[Gateway] = []
        self.prometheus = ""

    def gateway(self, name: str, namespace: str = "live", **settings) -> Gateway:
        gateway = Gateway(self, name, namespace, **settings)
        self.targets.append(gateway)
        self.scrape()
        return gateway

    def forget(self, gateway: Gateway):
        """As Kubernetes does with a pod that has ended."""
        self.targets.remove(gateway)
        self.scrape()

    def scrape(self):
        groups = [{"targets": [f"127.0.0.1:{g.admin}"], "labels": {"namespace": g.namespace, "pod": g.pod}}
                  for g in self.targets]
        new = self.folder / "targets.new"
        new.write_text(json.dumps(groups))
        new.rename(self.folder / "targets.json")

    def start_prometheus(self, *rules: Path):
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule) for rule in rules],
            "scrape_configs": [{"job_name": "tollgate", "file_sd_configs": [
                {"files": [str(self.folder / "targets.json")], "refresh_interval": "1s"}]}],
        }
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        Process(self.folder, "prometheus", [
            "prometheus", f"--config.file={self.folder}/prometheus.yaml", f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"])
        self.prometheus = f"http://127.0.0.1:{port}"
        wait("Prometheus", lambda: "Ready" in get(f"{self.prometheus}/-/ready"))

    def end(self):
        for process in reversed(Process.all):
            process.end()
        self.app.shutdown()
        self.other_app.shutdown()
