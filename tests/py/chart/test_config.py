"""`config` becomes a file that the gateway takes, with the values that were given and nothing else."""

import pathlib
import re
import signal
import subprocess
import time
import tomllib

import pytest
import yaml

from render import CASES, CHART, HELMS, POSTGRES, merged, nested, one, rendered
from support import ROOT
from support.net import free_port, get
from support.process import Process
from support.wait import eventually

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
KEY = "0123456789abcdef0123456789ABCDEF-unlike-any-placeholder"


def toml(helm: str, values: dict | str, of_relay: bool = False) -> str:
    return one(rendered(helm, values), "ConfigMap", "-config", of_relay)["data"]["tollgate.toml"]


def without_empty(tree: dict) -> dict:
    """None takes a default out, and a section without values says nothing."""
    trees = {n: without_empty(v) if isinstance(v, dict) else v for n, v in tree.items()}
    return {n: v for n, v in trees.items() if v not in ({}, None)}


def written(folder: pathlib.Path, text: str) -> pathlib.Path:
    """A rendered file as the gateway here can take it: what pods find under /run/secrets is in a folder."""
    secrets = folder / "secrets"
    for name in re.findall('"/run/secrets/([^"]+)"', text):
        (secrets / name).parent.mkdir(parents=True, exist_ok=True)
        (secrets / name).write_text(KEY)
    file = folder / "tollgate.toml"
    file.write_text(text.replace("/run/secrets", str(secrets)))
    return file


def checked(tollgate: str, folder: pathlib.Path, values: dict, text: str) -> str:
    """What `config check` says, with the Secrets that the values name in the environment."""
    env = {name: KEY for name in values.get("secretEnv", {})}
    if "TOLLGATE_REDIS__URL" in env:
        env["TOLLGATE_REDIS__URL"] = f"rediss://:{KEY}@redis:6379"
    command = [tollgate, "config", "check", "--config", written(folder, text)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("case", CASES)
def test_the_gateway_takes_what_is_rendered(case, tollgate, tmp_path):
    values = CASES[case]
    texts = {toml(helm, values) for helm in HELMS}
    assert len(texts) == 1
    text = texts.pop()
    assert without_empty(tomllib.loads(text)) == without_empty(merged(DEFAULTS, values.get("config", {})))
    assert not checked(tollgate, tmp_path, values, text)


@pytest.mark.parametrize("helm", HELMS)
def test_every_setting_of_the_manual_goes_through(helm, tollgate, tmp_path):
    manual = subprocess.run([tollgate, "config", "print", "--defaults"], check=True, capture_output=True, text=True)
    config = merged(tomllib.loads(manual.stdout), DEFAULTS)
    # The relay's section is in its own file only.
    relay = merged(config.pop("relay"), {"url": POSTGRES, "password_file": "/run/secrets/postgres/password"})
    config["channels"] = [
        {"pattern": "post:{id}", "allow": "authenticated", "history": {"size": 100, "ttl": "10m"}},
        {"pattern": "plan:{id}", "allow": "claim", "claim": "plan", "value": 7},
        {"pattern": "half:{id}", "allow": "claim", "claim": 'a "quoted" \\ one\nü <&>', "value": 0.5},
        {"pattern": "app:{id}", "allow": "callback", "send_claims": ["a", "b"]},
        {"pattern": "user:{user}", "allow": "owner", "auto_subscribe": True},
    ]
    config["callback"]["url"] = "https://app/api/may-subscribe?a=1&b=2"
    config["auth"]["session_cookie"] |= {"enabled": True, "secret_files": ["/run/secrets/session/secret"]}
    config["api"]["key_file"] = "/run/secrets/api/keys"
    config["auth"]["keys"][0] |= {"valid_until": "2099-12-01T00:00:00Z", "algs": ["HS256", "HS512"]}
    names = ("jwt", "api", "session")
    values = {"config": config, "secretFiles": {name: {"secretName": name} for name in names}}
    values["relay"] = {"enabled": True, "config": {"relay": relay}}
    text = toml(helm, values)
    read = tomllib.loads(text)
    assert read == config
    of_relay = tomllib.loads(toml(helm, values, of_relay=True))
    assert of_relay["relay"] == relay
    for section in ("channels", "history", "limits", "redis"):
        assert of_relay[section] == config[section]
    # 5 == 5.0 in Python, and not for the gateway.
    assert type(read["limits"]["connections"]) is int
    assert not checked(tollgate, tmp_path, values, text)


def test_a_moment_may_be_written_without_quotes(tollgate, tmp_path):
    """YAML takes it for a date; Helm does not."""
    values = "config: {auth: {keys: [{secret_file: /run/secrets/jwt/k, valid_until: 2099-12-01T00:00:00Z}]}}"
    for helm in HELMS:
        text = toml(helm, values)
        assert 'valid_until = "2099-12-01T00:00:00Z"' in text
        assert not checked(tollgate, tmp_path, {}, text)


@pytest.mark.parametrize("helm", HELMS)
def test_the_examples_of_the_documentation(helm, tollgate, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(), re.DOTALL)
    examples = [block for block in blocks if "config:" in block]
    assert len(examples) == 3
    for example in examples:
        assert not checked(tollgate, tmp_path, yaml.safe_load(example), toml(helm, example))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("limits.conections", 5, "did you mean limits.connections?"),
        ("redis.prefix", "", "redis.prefix"),
        ("channels", [{"pattern": "x:{y}", "allow": "everybody"}], "channels[0].allow"),
    ],
)
def test_the_gateway_refuses_what_it_does_not_know(path, value, said, tollgate, tmp_path):
    values = {"config": nested(path, value)}
    assert said in checked(tollgate, tmp_path, values, toml("helm-4", values))


@pytest.mark.parametrize(
    ("settle", "window", "drain"),
    [
        ("5s", "20s", 25),
        ("0s", "250ms", 1),
        ("1500ms", "1m 30s", 92),
        ("10sec", "2minutes", 130),
        ("1h", "1m1s", 3661),
    ],
)
def test_the_grace_period_follows_the_drain(settle, window, drain, tollgate, tmp_path):
    values = {"config": {"drain": {"settle": settle, "window": window}}}
    for helm in HELMS:
        spec = one(rendered(helm, values), "Deployment")["spec"]
        assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == drain + 5
        assert spec["minReadySeconds"] == drain
    assert not checked(tollgate, tmp_path, values, toml("helm-4", values))


def restart_checksum(values: dict) -> str:
    pod = one(rendered("helm-4", values), "Deployment")["spec"]["template"]
    return pod["metadata"]["annotations"]["checksum/restart-config"]


@pytest.mark.parametrize(
    ("path", "value", "restarts"),
    [
        ("channels", [{"pattern": "a", "allow": "public"}], False),
        ("auth.leeway", "10s", False),
        ("auth.session_cookie.enabled", False, False),
        ("callback.url", "https://app/", False),
        ("history.max_messages", 5, False),
        ("limits.connections", 50000, False),
        ("server.allowed_origins", ["https://app"], False),
        ("server.trusted_proxies", ["10.0.0.0/8"], False),
        ("auth.jwks.refresh", "1m", True),
        ("limits.http_connections", 5, True),
        ("limits.handshake_timeout", "9s", True),
        ("server.workers", 2, True),
        ("redis.prefix", "ws:", True),
        ("broker.linger", "1s", True),
        ("drain.window", "30s", True),
        ("doctor.per_second", 2, True),
        ("log.level", "debug", True),
    ],
)
def test_only_what_the_gateway_does_not_reload_restarts_pods(path, value, restarts):
    changed = restart_checksum({"config": nested(path, value)}) != restart_checksum({})
    assert changed is restarts


def test_probes_metrics_and_the_end_of_a_pod(tollgate, tmp_path):
    """The gateway runs with what is rendered, answers what Kubernetes and Prometheus ask, and ends within its grace."""
    ports = {"admin": free_port(), "server": free_port()}
    listen = {name: {"listen": f"127.0.0.1:{port}"} for name, port in ports.items()}
    drain = {"drain": {"settle": "500ms", "window": "500ms"}}
    values = merged(CASES["memory"], CASES["metrics.serviceMonitor.enabled"], {"config": drain})
    documents = rendered("helm-4", values)
    pod = one(documents, "Deployment")["spec"]["template"]["spec"]
    text = toml("helm-4", values)
    for name, address in {"admin": "0.0.0.0:9000", "server": "0.0.0.0:8000"}.items():
        assert text.count(address) == 1
        text = text.replace(address, listen[name]["listen"])
    command = [tollgate, "serve", "--config", written(tmp_path, text)]
    with Process(tmp_path, "tollgate", *command, env={}) as process:
        admin = f"http://127.0.0.1:{ports['admin']}"
        paths = {name: pod["containers"][0][f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")}
        eventually("ready", lambda: get(admin + paths["readiness"])[0] == 200)
        assert get(admin + paths["liveness"])[0] == 200
        scraped = one(documents, "ServiceMonitor")["spec"]["endpoints"][0]["path"]
        assert "\ntollgate_draining " in get(admin + scraped)[1]
        began = time.monotonic()
        process.send(signal.SIGTERM)
        eventually("not ready", lambda: get(admin + paths["readiness"])[0] == 503)
        assert get(admin + paths["liveness"])[0] == 200
        # Still accepting, so no preStop is needed.
        assert get(f"http://127.0.0.1:{ports['server']}/")[0] == 404
        assert process.child.wait(timeout=30) == 0
        assert time.monotonic() - began < pod["terminationGracePeriodSeconds"]
