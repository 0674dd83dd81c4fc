"""Redis, gateways, an application beside them, and Prometheus, on free ports of the loopback."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from support.gateway import Gateway
from support.net import free_port, get
from support.process import Process
from support.redis import Redis
from support.tokens import SECRET, sign
from support.wait import eventually

API_KEY = "the-key-of-the-monitoring-test"
# Behind everything else on the machine; what is measured here is no speed.
NICE = 10
T = TypeVar("T", bound=Process)


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
        return sign("stranger", self.key, "ES256", kid=kid)


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


class Replica(Gateway):
    def __init__(self, stack: "Stack", name: str, namespace: str = "live", **settings):
        self.namespace, self.job = namespace, "tollgate"
        app = stack.app if namespace == "live" else stack.other_app
        self.settings = {
            "broker": "redis",
            "redis": stack.redis.port,
            "app": app.server_port,
            "secret": SECRET,
            "patience": "3s",
            "connections": 5000,
            "window": "5s",
            "key": API_KEY,
            **settings,
        }
        super().__init__(stack.folder, name, CONFIG.format(**self.settings), nice=NICE)

    def configure(self, **settings):
        self.settings.update(settings)
        self.write(CONFIG.format(**self.settings))


class Stack:
    def __init__(self, folder: Path):
        self.folder = folder
        self.processes = contextlib.ExitStack()
        self.app = Application()
        # That of the gateways in other namespaces, which is never broken.
        self.other_app = Application()
        self.redis = self.run(Redis(folder, nice=NICE))
        # What Prometheus scrapes.
        self.targets: list = []
        self.prometheus = ""

    def run(self, process: T) -> T:
        """Until the end of the stack."""
        return self.processes.enter_context(process)

    def gateway(self, name: str, namespace: str = "live", **settings) -> Replica:
        gateway = self.run(Replica(self, name, namespace, **settings))
        self.target(gateway)
        return gateway

    def target(self, process):
        """A gateway or a relay, which Prometheus scrapes from now on."""
        self.targets.append(process)
        self.scrape()

    def forget(self, gateway: Replica):
        """As Kubernetes does with a pod that has ended."""
        self.targets.remove(gateway)
        self.scrape()

    def scrape(self):
        groups = [
            {
                "targets": [f"127.0.0.1:{g.admin}"],
                "labels": {"job": g.job, "namespace": g.namespace, "pod": g.name},
            }
            for g in self.targets
        ]
        new = self.folder / "targets.new"
        new.write_text(json.dumps(groups))
        new.rename(self.folder / "targets.json")

    def start_prometheus(self, *rules: Path):
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule) for rule in rules],
            "scrape_configs": [
                {
                    "job_name": "tollgate",
                    "file_sd_configs": [{"files": [str(self.folder / "targets.json")], "refresh_interval": "1s"}],
                }
            ],
        }
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.run(
            Process(
                self.folder,
                "prometheus",
                "prometheus",
                f"--config.file={self.folder}/prometheus.yaml",
                f"--storage.tsdb.path={self.folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
                nice=NICE,
            )
        )
        self.prometheus = f"http://127.0.0.1:{port}"
        eventually("Prometheus", lambda: "Ready" in get(f"{self.prometheus}/-/ready")[1])

    def end(self):
        self.processes.close()
        self.app.shutdown()
        self.other_app.shutdown()
