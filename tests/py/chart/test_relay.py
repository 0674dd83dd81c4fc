"""The relay beside the gateway: neither has the other's Secrets, and no selector of one takes the other's pods."""

import json
import re
import signal
import subprocess
import time
import tomllib

import pytest

from render import CASES, HELMS, POSTGRES, is_of_relay, merged, nested, one, rendered
from support.net import free_port, get
from support.postgres import Postgres
from support.process import Process
from support.redis import Redis
from support.wait import eventually

RELAYED = [name for name, values in CASES.items() if values.get("relay", {}).get("enabled")]
RELAY = CASES["relay.enabled"]


def deployment(documents: list[dict], of_relay: bool = True) -> dict:
    return one(documents, "Deployment", of_relay=of_relay)


def pod_of(documents: list[dict], of_relay: bool = True) -> dict:
    return deployment(documents, of_relay)["spec"]["template"]["spec"]


def relays(values: dict) -> list[dict]:
    return [d for d in rendered("helm-4", values) if is_of_relay(d)]


def configuration(values: dict) -> dict:
    texts = {one(rendered(helm, values), "ConfigMap", of_relay=True)["data"]["tollgate.toml"] for helm in HELMS}
    assert len(texts) == 1
    return tomllib.loads(texts.pop())


def secrets(pod: dict) -> set[str]:
    """The Secrets whose content a pod gets, as files or as variables."""
    files = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    env = [entry for container in pod["containers"] for entry in container.get("env", [])]
    return files | {e["valueFrom"]["secretKeyRef"]["name"] for e in env if "valueFrom" in e}


def selectors(tree, path: str = ""):
    """Every selector of pods in a document: `matchLabels` by whatever name, and a Service's."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if name in ("podSelector", "labelSelector") or (path == "/spec" and name == "selector"):
            yield value.get("matchLabels", value)
        yield from selectors(value, f"{path}/{name}")


def text_of(values: dict, folder) -> str:
    """The rendered file as a relay can take it here: with the files that its pods find, and ports that are its own."""
    text = one(rendered("helm-4", values), "ConfigMap", of_relay=True)["data"]["tollgate.toml"]
    for name in re.findall('"/run/secrets/([^"]+)"', text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a-password")
    return text.replace("/run/secrets", str(folder))


def test_there_is_none_by_default():
    assert not relays({})
    assert not relays(nested("relay.config.relay.url", POSTGRES))


def test_it_has_objects_of_its_own():
    kinds = {d["kind"] for d in relays(CASES["all but keda"])}
    own = {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"}
    assert kinds == own | {"ServiceMonitor"}
    off = merged(CASES["all off"], RELAY)
    assert {d["kind"] for d in relays(off)} == {"ConfigMap", "Deployment", "Service", "ServiceAccount"}


def test_the_gateway_is_what_it_is_without_a_relay():
    for name in RELAYED:
        without = merged(CASES[name], nested("relay.enabled", False))
        gateways = [d for d in rendered("helm-4", CASES[name]) if not is_of_relay(d)]
        assert gateways == rendered("helm-4", without), name


@pytest.mark.parametrize("case", RELAYED)
def test_no_selector_takes_the_others_pods(case):
    documents = rendered("helm-4", CASES[case])
    labels = {
        of_relay: deployment(documents, of_relay)["spec"]["template"]["metadata"]["labels"]
        for of_relay in (True, False)
    }
    checked = 0
    for document in documents:
        if document["kind"] not in ("Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"):
            continue
        for selector in selectors(json.loads(json.dumps(document))):
            # That of whoever may come in, and not of the pods here.
            if not selector:
                continue
            own, other = labels[is_of_relay(document)], labels[not is_of_relay(document)]
            assert selector.items() <= own.items(), document
            assert not selector.items() <= other.items(), document
            checked += 1
    assert checked >= 8


def test_a_monitor_takes_its_own_service():
    documents = rendered("helm-4", CASES["all but keda"])
    for of_relay in (True, False):
        monitor = one(documents, "ServiceMonitor", of_relay=of_relay)
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [d for d in documents if d["kind"] == "Service" and wanted <= d["metadata"]["labels"].items()]
        assert [is_of_relay(d) for d in found] == [of_relay]
        # The rules and the dashboard know the relay by it.
        job = found[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]]
        assert job == ("tollgate-relay" if of_relay else "tollgate")


@pytest.mark.parametrize("case", RELAYED)
def test_only_the_relay_knows_the_database(case):
    documents = rendered("helm-4", CASES[case])
    gateway = [d for d in documents if not is_of_relay(d)]
    assert "postgres://" not in json.dumps([d for d in gateway if "dashboard" not in d["metadata"]["name"]])
    assert not secrets(pod_of(documents, False)) & {"tollgate-relay", "relay", "relay-redis"}
    assert "relay" not in tomllib.loads(one(documents, "ConfigMap", "-config")["data"]["tollgate.toml"])


@pytest.mark.parametrize("case", RELAYED)
def test_the_relay_has_nothing_of_tokens_and_clients(case):
    documents = rendered("helm-4", CASES[case])
    assert not secrets(pod_of(documents)) & {"tollgate-jwt", "jwt", "api"}
    sections = {"admin", "broker", "channels", "history", "limits", "log", "redis", "relay"}
    assert set(configuration(CASES[case])) <= sections
    ports = pod_of(documents)["containers"][0]["ports"]
    assert [port["name"] for port in ports] == ["admin"]
    assert [p["name"] for p in one(documents, "Service", of_relay=True)["spec"]["ports"]] == ["admin"]


def test_it_gets_the_secrets_of_redis_and_no_others():
    values = merged(
        RELAY,
        {
            "secretFiles": {"redis": {"secretName": "redis"}, "app": {"secretName": "app"}},
            "secretEnv": {
                "TOLLGATE_REDIS__USERNAME": {"secretName": "redis-user", "key": "a"},
                "TOLLGATE_AUTH__KEYS": {"secretName": "keys", "key": "b"},
            },
            "config": {
                "redis": {"password_file": "/run/secrets/redis/password", "ca_file": "/etc/ca/ca.pem"},
                "callback": {"url": "https://app/may", "secret_file": "/run/secrets/app/secret"},
            },
            "extraVolumes": [{"name": n, "configMap": {"name": n}} for n in ("ca", "ca-of-others")],
            "extraVolumeMounts": [{"name": n, "mountPath": f"/etc/{n}"} for n in ("ca", "ca-of-others")],
        },
    )
    pod = pod_of(rendered("helm-3", values))
    assert secrets(pod) == {"tollgate-relay", "redis", "redis-user"}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {
        "config": "/etc/tollgate",
        "ca": "/etc/ca",
        "secret-postgres": "/run/secrets/postgres",
        "secret-redis": "/run/secrets/redis",
    }
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    config = configuration(values)
    assert config["redis"] == merged(values["config"]["redis"], {"url": "redis://redis:6379"})
    # Rules that ask the application are refused without its address, and the relay never asks.
    assert config["callback"] == {"url": "https://app/may"}


def test_its_own_secrets_count_before_the_gateways():
    documents = rendered("helm-4", CASES["everything else"])
    assert secrets(pod_of(documents)) == {"relay", "relay-redis"}
    config = configuration(CASES["everything else"])
    assert config["log"] == {"format": "json", "level": "debug"}
    assert config["relay"]["batch_bytes"] == 8388608 and type(config["relay"]["batch_bytes"]) is int


def test_rules_reach_it():
    channels = [{"pattern": "user:{user}", "allow": "owner", "history": {"size": 100, "ttl": "10m"}}]
    values = merged(RELAY, {"config": {"channels": channels, "limits": {"publication_bytes": 65536}}})
    config = configuration(values)
    assert config["channels"] == channels
    assert config["limits"] == {"publication_bytes": 65536}
    assert type(config["limits"]["publication_bytes"]) is int


def test_every_change_of_its_configuration_restarts_it_and_nobody_else():
    def checksums(values: dict) -> list[str]:
        documents = rendered("helm-4", values)
        pods = [deployment(documents, of_relay)["spec"]["template"] for of_relay in (True, False)]
        return [json.dumps(pod["metadata"]["annotations"]) for pod in pods]

    before = checksums(RELAY)
    for path, value in {"relay.config.relay.retention": "7d", "config.channels": [{"pattern": "a"}]}.items():
        after = checksums(merged(RELAY, nested(path, value)))
        assert after[0] != before[0] and after[1] == before[1], path
    assert checksums(merged(RELAY, nested("config.auth.leeway", "9s"))) == before


def test_one_leads_and_one_stands_by():
    documents = rendered("helm-4", RELAY)
    spec = deployment(documents)["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    keys = [spread["topologyKey"] for spread in spec["template"]["spec"]["topologySpreadConstraints"]]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert one(documents, "PodDisruptionBudget", of_relay=True)["spec"]["maxUnavailable"] == 1
    alone = relays(merged(RELAY, nested("relay.replicas", 1)))
    assert "PodDisruptionBudget" not in {d["kind"] for d in alone}


def test_the_policy_lets_it_reach_postgres_and_the_gateway_not():
    documents = rendered("helm-4", CASES["everything else"])

    def ports(of_relay: bool) -> set[int]:
        egress = one(documents, "NetworkPolicy", of_relay=of_relay)["spec"]["egress"]
        return {port["port"] for rule in egress for port in rule["ports"]}

    assert ports(True) == {53, 6379, 26379, 5432, 6432}
    assert ports(False) == {53, 6379, 26379, 443}
    policy = one(documents, "NetworkPolicy", of_relay=True)["spec"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["admin"]
    assert {"to": [{"ipBlock": {"cidr": "10.2.0.0/16"}}]}.items() <= policy["egress"][2].items()


@pytest.mark.parametrize("case", RELAYED)
def test_the_relay_takes_what_is_rendered(case, tollgate, tmp_path):
    """It gets as far as Postgres, which is not there."""
    text = re.sub("@(db|a,b(:6432)?)/", "@127.0.0.1:1/", text_of(CASES[case], tmp_path))
    text = text.replace("/etc/postgres/ca.pem", "/etc/ssl/certs/ca-certificates.crt")
    file = tmp_path / "tollgate.toml"
    file.write_text(text)
    env = {name: "rediss://redis:6379" for name in CASES[case]["relay"].get("secretEnv", {})}
    command = [tollgate, "relay", "status", "--config", file]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "cannot connect to PostgreSQL at 127.0.0.1:1/shop" in done.stderr


def test_probes_metrics_and_the_end_of_a_pod(tollgate, tmp_path):
    """The relay runs with what is rendered, answers what Kubernetes and Prometheus ask, and ends within its grace."""
    port = free_port()
    values = merged(CASES["relay.enabled"], CASES["metrics.serviceMonitor.enabled"])
    pod = pod_of(rendered("helm-4", values))
    file = tmp_path / "tollgate.toml"
    with Postgres(tmp_path) as postgres, Redis(tmp_path) as redis:
        text = text_of(values, tmp_path).replace(POSTGRES, postgres.url("postgres", "relay"))
        text = text.replace("0.0.0.0:9000", f"127.0.0.1:{port}").replace("redis:6379", f"127.0.0.1:{redis.port}")
        file.write_text(text)
        container = pod["containers"][0]
        paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")}
        admin = f"http://127.0.0.1:{port}"
        command = [tollgate, *container["args"][:-1], file]
        with Process(tmp_path, "relay", *command, env={}) as process:
            # Before the migration: alive, and not ready.
            eventually("alive", lambda: get(admin + paths["liveness"])[0] == 200)
            assert get(admin + paths["readiness"])[0] == 503
            postgres.migrate(tollgate)
            eventually("ready", lambda: get(admin + paths["readiness"])[0] == 200)
            eventually("leads", lambda: "\ntollgate_relay_leader 1\n" in get(f"{admin}/metrics")[1])
            postgres.sql("""SELECT tollgate_publish('user:1', '{"type":"order"}')""")
            published = "\ntollgate_relay_published_total 1\n"
            eventually("published", lambda: published in get(f"{admin}/metrics")[1])

            # An outage of Redis moves and restarts nobody.
            redis.end()
            eventually("degraded", lambda: '"degraded":true' in get(admin + paths["readiness"])[1])
            assert [get(admin + path)[0] for path in paths.values()] == [200, 200]

            began = time.monotonic()
            process.send(signal.SIGTERM)
            assert process.child.wait(timeout=60) == 0
            assert time.monotonic() - began < pod["terminationGracePeriodSeconds"]
