"""The alerts and the dashboard with a real Prometheus, two gateways and a Redis, under load and with faults.

Beside the rules as they are runs a copy in which every duration is a twentieth (watch.py, `time_lapse`): in the
healthy part neither may fire, and with faults the copy has to. UPDATE=1 draws docs/dashboard.png.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis

import draw
import faults
import lint
import watch
from clients import BAD, Clients
from paths import ALERTS, PICTURE
from relays import Relays
from stack import NICE, Stack
from support.gateway import Admin, binary
from support.process import Process
from support.tokens import SECRET
from support.wait import NotInTimeError, eventually

SOCKETS = 120


class Test:
    def __init__(self, folder: Path):
        self.began = time.time()
        self.wrong: list[str] = []
        self.stack = Stack(folder)
        self.clients = Clients(self.stack.redis.port)

    def say(self, what: str):
        print(f"{time.time() - self.began:5.0f} s  {what}", flush=True)

    def complain(self, *what: str):
        for one in what:
            self.say(f"WRONG: {one}")
            self.wrong.append(one)

    def start(self):
        stack = self.stack
        lapse = stack.folder / "lapse.yaml"
        lapse.write_text(watch.time_lapse(ALERTS.read_text()))
        self.a, self.b = stack.gateway("tollgate-0"), stack.gateway("tollgate-1")
        self.storm = stack.gateway("storm-0", "storm", broker="memory")
        self.relays = Relays(stack)
        stack.start_prometheus(ALERTS, lapse)
        self.prometheus = watch.Prometheus(stack.prometheus)
        fingerprint = subprocess.run(
            [binary(), "token", "fingerprint", "--config", self.a.config], capture_output=True, text=True, check=True
        ).stdout
        ours = next(word for word in fingerprint.split() if len(word) == 16 and set(word) <= set("0123456789abcdef"))
        redis.Redis(port=stack.redis.port).set("gateway:tollgate:issuer:web", ours)
        eventually("all targets are up", lambda: len(self.prometheus.query("up == 1")) == 5)

    def close(self):
        if hasattr(self, "relays"):
            self.relays.close()
        self.stack.end()

    def load(self):
        c = self.clients
        c.pool = [self.a, self.b]
        half = SOCKETS // 2
        c.go(
            "good",
            *[c.socket(channels=["room:1", f"post:{n % 7}"]) for n in range(half)],
            *[c.socket(channels=["room:1"], format="envelope") for _ in range(half)],
            *[c.stream("room:1") for _ in range(6)],
            c.asks(2),
        )
        c.go(
            "custom",
            *[c.socket(stay=6, pause=(0.5, 2)) for _ in range(20)],
            c.attempts(4, secret=BAD),
            c.socket(self.storm),
            c.socket(self.storm, stay=5),
        )
        c.go(
            "publishers",
            c.publish(0.3, lambda _: "room:1", durable=True),
            c.publish(0.2, lambda n: f"post:{n % 7}"),
            c.publish(0.1, lambda n: f"user:u{n % SOCKETS}", durable=True),
            c.api(0.2, "publish", lambda n: {"channel": "room:1", "data": {"type": "api", "n": n}}),
            c.api(5, "invalidate_user_tokens", lambda n: {"user": f"nobody{n}"}),
        )
        options = ["--secret", SECRET, "--redis", f"redis://127.0.0.1:{self.stack.redis.port}"]
        self.loads = [
            self.stack.run(
                Process(
                    self.stack.folder,
                    f"load-{g.name}",
                    binary("TOLLGATE_LOAD_BIN"),
                    *what,
                    "--url",
                    f"ws://127.0.0.1:{g.public}/ws",
                    *options,
                    nice=NICE,
                )
            )
            for g, what in (
                (self.a, ["mixed", "-n", "30", "--duration", "25s", "--rate", "5", "--user-rate", "20"]),
                (
                    self.b,
                    ["fanout", "-n", "15", "--duration", "25s", "--rate", "5", "--durable", "--channel", "room:load"],
                ),
            )
        ]

    def loaded(self):
        for load in self.loads:
            if load.child.wait(60):
                self.complain(f"{load.name}: exit code {load.child.returncode}:\n{load.log.read_text()[-1500:]}")

    def roll(self):
        """As a Deployment does: a new one, then an old one goes."""
        for n, old in enumerate((self.a, self.b)):
            new = self.stack.gateway(f"tollgate-{n + 2}")
            self.clients.pool = [g for g in self.clients.pool if g is not old] + [new]
            time.sleep(2)
            if old.end(signal.SIGTERM):
                self.complain(f"{old.name} did not drain well")
            self.stack.forget(old)
            self.say(f"{old.name} is replaced by {new.name}")
        self.a, self.b = self.clients.pool
        eventually(
            "Prometheus knows who is gone",
            lambda: len(self.prometheus.query('up{job="tollgate",namespace="live"}')) == 2,
        )

    def healthy(self):
        def waiting():
            return self.prometheus.query('ALERTS{alertstate="pending",lapse=""}')

        try:
            # The replica that went last is known to be gone a moment later.
            eventually("nothing is about to fire", lambda: not waiting(), 10)
        except NotInTimeError:
            self.complain(f"about to fire while all was well: {waiting()}")
        now = time.time()
        fired = self.prometheus.alerts("firing", None, self.began, now)
        self.complain(*[f"{name} fired while all was well" for name in fired])
        before = self.prometheus.alerts("pending", None, self.began, now)
        self.say(f"fired: {fired or 'nothing'}; pending for so many seconds: {before or 'nothing'}")
        self.complain(*self.prometheus.unhealthy())

    def lint_metrics(self, gateway: Admin):
        done = subprocess.run(["promtool", "check", "metrics"], input=gateway.metrics(), capture_output=True, text=True)
        if done.returncode or done.stdout or done.stderr:
            self.complain(f"promtool check metrics, {gateway.name}: {done.stdout}{done.stderr}")

    def fires(self, names: set[str], seconds: float, begin: float, labels: str = ""):
        """Waits until the time-lapse copy of all these alerts has fired."""

        def missing():
            return names - set(self.prometheus.alerts("firing", True, begin, time.time(), labels))

        try:
            eventually("alerts", lambda: not missing(), seconds)
        except NotInTimeError:
            self.complain(*[f"{name} did not fire" for name in sorted(missing())])
        self.say(f"fired: {', '.join(sorted(names - missing()))}")

    def break_things(self):
        names = {rule["alert"] for rule in lint.rules(ALERTS.read_text())}
        self.complain(*[f"NOT_LIVE: no alert {n}" for n in set(faults.NOT_LIVE) - names])
        last = {"TollgateRedisLost", "TollgateDown", "TollgateConnectionsCollapsed"}
        begin = time.time()
        self.clients.stop("custom")
        trouble = faults.Faults(self.stack, self.clients, self.relays, self.a, self.b, self.storm)
        trouble.begin()
        self.say("broken: tokens, key set, callback, configuration, limits, slow clients, Redis, replicas, relays")
        self.fires(names - last - set(faults.NOT_LIVE), 120, begin)
        self.doctor(begin)
        self.complain(*self.clients.died())
        self.drawn_until = time.time()
        trouble.outage()
        self.say("Redis is stopped")
        self.fires({"TollgateRedisLost"}, 20, self.drawn_until, ',namespace="live"')
        trouble.blackout()
        self.say("the gateways are killed")
        self.fires({"TollgateDown", "TollgateConnectionsCollapsed"}, 40, self.drawn_until, ',namespace="live"')

    def doctor(self, begin: float):
        """The alert names the cause: the quotes around the secret."""
        said = [
            alert["annotations"]["description"]
            for alert in self.prometheus.ask("alerts")["alerts"]
            if alert["labels"]["alertname"] in ("TollgateBadSignatures", "TollgateTokensRefused")
        ]
        if not said or not all("secret_quoted" in text for text in said):
            self.complain(f"bad signatures: the alert does not name the cause secret_quoted: {said}")

    def run(self):
        self.start()
        self.load()
        self.say("two gateways under load")
        self.loaded()
        self.lint_metrics(self.a)
        self.lint_metrics(self.b)
        self.lint_metrics(self.relays.pair[0])
        self.roll()
        self.healthy()
        self.break_things()
        self.complain(*watch.dashboard(self.prometheus, self.began, time.time()))
        if os.environ.get("UPDATE") and not self.wrong:
            draw.draw(self.prometheus, self.began, self.drawn_until, PICTURE)
            self.say(f"{PICTURE.name}: {PICTURE.stat().st_size // 1000} kB")


def main() -> int:
    for variable in ("TOLLGATE_BIN", "TOLLGATE_LOAD_BIN"):
        binary(variable)
    # Who stops the test stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    folder = Path(tempfile.mkdtemp(prefix="tollgate-monitoring-"))
    test = Test(folder)
    try:
        test.run()
    finally:
        test.close()
        test.clients.close()
        if test.wrong or sys.exc_info()[0]:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder)
    print(f"{len(test.wrong)} things are wrong" if test.wrong else "monitoring: all is well")
    return 1 if test.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
