"""What the chart's tests share: two helms, and the cases that are rendered."""

import functools
import json
import os
import pathlib
import subprocess
import tempfile

import yaml

from support import ROOT

CHART = ROOT / "charts/tollgate"
HELMS = ("helm-3", "helm-4")

TOGGLES = (
    "autoscaling.enabled",
    "ingress.enabled",
    "gatewayApi.enabled",
    "networkPolicy.enabled",
    "podDisruptionBudget.enabled",
    "metrics.serviceMonitor.enabled",
    "metrics.prometheusRule.enabled",
    "metrics.dashboards.enabled",
    "keda.enabled",
    "relay.enabled",
)
POSTGRES = "postgres://tollgate_relay@db/shop?sslmode=verify-full"


def nested(path: str, value) -> dict:
    """`nested("a.b", 1)` is {"a": {"b": 1}}."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def merged(*trees: dict) -> dict:
    """One over the other, as values files are; None stays, for Helm to take out."""
    out: dict = {}
    for tree in trees:
        for name, value in tree.items():
            below = out.get(name)
            out[name] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return out


def toggled(toggle: str) -> dict:
    """Turned on, with what there is no default for."""
    needed = nested("relay.config.relay.url", POSTGRES) if toggle == "relay.enabled" else {}
    return merged(nested(toggle, True), needed)


def all_toggles(without: str) -> dict:
    return merged(*(toggled(toggle) for toggle in TOGGLES if toggle != without))


def presets() -> dict[str, dict]:
    files = sorted(CHART.glob("presets/*.yaml"))
    assert len(files) == 6
    return {f"preset {file.stem}": yaml.safe_load(file.read_text()) for file in files}


# Every toggle alone, all together (either autoscaler), all off, the presets, and what has branches of its own.
CASES: dict[str, dict] = {
    "defaults": {},
    **{toggle: toggled(toggle) for toggle in TOGGLES},
    "all but keda": all_toggles("keda.enabled"),
    "all but autoscaling": all_toggles("autoscaling.enabled"),
    "all off": merged(*(nested(toggle, False) for toggle in TOGGLES)),
    **presets(),
    "memory": {"replicaCount": 1, "config": {"broker": {"kind": "memory"}, "redis": {"url": None}}},
    "passwords in files": {
        "secretFiles": {"redis": {"secretName": "redis"}, "app": {"secretName": "app"}},
        "config": {
            "redis": {
                "url": "redis+sentinel://gateway@a,b:26379/mymaster",
                "password_file": "/run/secrets/redis/password",
                "sentinel_password_file": "/run/secrets/redis/sentinel",
            },
            "callback": {"secret_file": "/run/secrets/app/secret"},
        },
    },
    "everything else": {
        "nameOverride": "gate",
        "fullnameOverride": "a-name-that-is-longer-than-kubernetes-would-take-for-a-service",
        "image": {"digest": f"sha256:{'0' * 64}"},
        "imagePullSecrets": [{"name": "registry"}],
        "secretFiles": {
            "jwt": {"secretName": "jwt", "items": [{"key": "a", "path": "secret"}]},
            "api": {"secretName": "api"},
        },
        "secretEnv": {"TOLLGATE_REDIS__URL": {"secretName": "redis", "key": "url"}},
        "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        "serviceAccount": {"create": False, "annotations": {"a": "b"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "x"},
        "podSecurityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "8192"}]},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "maxSurge": 2,
        "maxUnavailable": "10%",
        "minReadySeconds": 3,
        "terminationGracePeriodSeconds": 300,
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "ingress": {
            "enabled": True,
            "className": "x",
            "annotations": {"a": "b"},
            "hosts": ["a.example.com", "*.b.example.com"],
            "tls": [{"secretName": "tls", "hosts": ["a.example.com"]}],
        },
        "autoscaling": {
            "extraMetrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
                }
            ]
        },
        "keda": {"enabled": True, "query": 'sum(x{a="b"})', "authenticationRef": {"name": "prometheus"}},
        "networkPolicy": {
            "enabled": True,
            "publicFrom": [{"podSelector": {}}],
            "redisTo": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
            "redisPorts": [6379, 26379],
            "postgresTo": [{"ipBlock": {"cidr": "10.2.0.0/16"}}],
            "postgresPorts": [5432, 6432],
            "extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
        },
        "relay": {
            "enabled": True,
            "replicas": 3,
            "config": {
                "relay": {
                    "url": "postgres://relay@a,b:6432/shop?target_session_attrs=read-write",
                    "listen_url": "postgres://relay@a,b/shop?target_session_attrs=read-write",
                    "ca_file": "/etc/postgres/ca.pem",
                    "schema": "events",
                    "batch_bytes": 8388608,
                    "retention": "7d",
                },
                "redis": {"password_file": "/run/secrets/redis/password"},
                "log": {"level": "debug"},
            },
            "secretFiles": {
                "postgres": {"secretName": "relay", "items": [{"key": "a", "path": "password"}]},
                "redis": {"secretName": "relay-redis"},
            },
            "secretEnv": {"TOLLGATE_REDIS__URL": {"secretName": "relay", "key": "redis"}},
            "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
            "extraVolumes": [{"name": "postgres", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "postgres", "mountPath": "/etc/postgres", "readOnly": True}],
            "serviceAccount": {"create": False, "name": "relay"},
            "podAnnotations": {"a": "b"},
            "podLabels": {"team": "y"},
            "nodeSelector": {"kubernetes.io/arch": "arm64"},
            "tolerations": [{"key": "b", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "low",
            "terminationGracePeriodSeconds": 60,
        },
        "metrics": {
            "serviceMonitor": {
                "enabled": True,
                "labels": {"release": "prometheus"},
                "relabelings": [{"action": "labeldrop", "regex": "pod_template_hash"}],
                "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "x"}],
            },
            "runbookUrl": "https://git.example.com/runbooks",
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "annotations": {"folder": "Tollgate"}},
        },
        "config": {
            "redis": {"url": None, "ca_file": "/etc/ca/ca.pem"},
            "api": {"key_file": "/run/secrets/api/keys"},
            "auth": {"keys": [{"secret_file": "/run/secrets/jwt/secret", "kid": "a"}]},
        },
    },
}


@functools.cache
def _template(helm: str, text: str, chart: str) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as scratch:
        values = os.path.join(scratch, "values.yaml")
        pathlib.Path(values).write_text(text)
        env = {f"HELM_{name}_HOME": scratch for name in ("CACHE", "CONFIG", "DATA")}
        command = [f"{ROOT}/target/helm/{helm}", "template", "rel", chart, "-n", "ns", "-f", values]
        return subprocess.run(command, env={"PATH": "", **env}, capture_output=True, text=True)


def template(helm: str, values: dict | str, chart=CHART) -> subprocess.CompletedProcess:
    """Values as a tree, or as the YAML that somebody wrote."""
    return _template(helm, values if isinstance(values, str) else json.dumps(values), str(chart))


def rendered(helm: str, values: dict | str, chart=CHART) -> list[dict]:
    done = template(helm, values, chart)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


def is_of_relay(document: dict) -> bool:
    return document["metadata"]["labels"]["app.kubernetes.io/name"].endswith("-relay")


def one(documents: list[dict], kind: str, name_ends: str = "", of_relay: bool = False) -> dict:
    """The gateway's own, or the relay's."""
    found = [
        d
        for d in documents
        if d["kind"] == kind and d["metadata"]["name"].endswith(name_ends) and is_of_relay(d) is of_relay
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name_ends}"
    return found[0]
