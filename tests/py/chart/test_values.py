"""Wrong values: each fails with a sentence that says what to do, from both helms, and never shows a secret."""

import pytest

from render import CASES, HELMS, merged, nested, rendered, template

SECRET = "a-secret-that-nobody-may-see"
OWN_KEY = {"config": {"auth": {"keys": [{"jwks_url": "https://issuer/keys"}]}}, "secretFiles": {"jwt": None}}


def config(path: str, value) -> dict:
    return {"config": nested(path, value)}


def relay(path: str, value) -> dict:
    """A relay that would be right, but for one value."""
    return merged(CASES["relay.enabled"], {"relay": nested(path, value)})


def key(**fields) -> dict:
    return config("auth.keys", [{"secret_file": "/run/secrets/jwt/secret"}, fields])


# What is wrong, and a part of the sentence that says what to do about it.
WRONG = {
    "two autoscalers": (
        {"autoscaling": {"enabled": True}, "keda": {"enabled": True}},
        "turn one of them off",
    ),
    "bounds crossed": ({"autoscaling": {"minReplicas": 11}}, "above autoscaling.maxReplicas: swap them"),
    "two replicas with memory": (
        config("broker.kind", "memory"),
        "set config.broker.kind to redis, or replicaCount to 1",
    ),
    "memory by default": (config("broker.kind", None), "set config.broker.kind to redis, or replicaCount to 1"),
    "autoscaled memory": (
        {**config("broker.kind", "memory"), "replicaCount": 1, "keda": {"enabled": True}},
        "set config.broker.kind to redis",
    ),
    "target above the limit": (
        {**config("limits.connections", 20000), "autoscaling": {"enabled": True}},
        "lower the first to about two thirds",
    ),
    "grace too short": ({"terminationGracePeriodSeconds": 29}, "leave it empty, or set it to 30 or more"),
    "drain too long for the grace": (
        {**config("drain.window", "10m"), "terminationGracePeriodSeconds": 600},
        "leave it empty, or set it to 610 or more",
    ),
    "drain without a unit": (config("drain.window", "20"), "durations such as 5s or 1m 30s"),
    "drain in unknown units": (config("drain.settle", "1 fortnight"), "durations such as 5s or 1m 30s"),
    "admin on loopback": (config("admin.listen", "127.0.0.1:9000"), "set it to 0.0.0.0:9000"),
    "admin by default": (config("admin.listen", None), "set it to 0.0.0.0:9000"),
    "admin on loopback 6": (config("admin.listen", "[::1]:9000"), "set it to 0.0.0.0:9000"),
    "public on loopback": (config("server.listen", "127.0.0.1:8000"), "set it to 0.0.0.0:8000"),
    "port 0": (config("server.listen", "0.0.0.0:0"), "has to end in a port from 1024"),
    "port 80": (config("server.listen", "0.0.0.0:80"), "has to end in a port from 1024"),
    "one port for both": (config("admin.listen", "0.0.0.0:8000"), "give them two"),
    "secret of a key": (key(secret=SECRET), "config.auth.keys[1].secret is a secret"),
    "symmetric JWK": (key(jwk=f'{{"kty":"oct","k":"{SECRET}"}}'), "write jwks_file: /run/secrets/NAME/KEY"),
    "private JWK": (key(jwk=f'{{"kty":"OKP","x":"a","d":"{SECRET}"}}'), "write jwks_file: /run/secrets/NAME/KEY"),
    "private PEM": (key(public_key_pem=f"-----BEGIN PRIVATE KEY-----{SECRET}"), "give it the public one"),
    "key set with credentials": (key(jwks_url=f"https://u:{SECRET}@issuer/keys"), "use an address that needs none"),
    "API keys": (config("api.keys", [SECRET]), "set config.api.key_file to /run/secrets/NAME/KEY"),
    "session secrets": (
        config("auth.session_cookie", {"enabled": True, "secrets": [SECRET]}),
        "in config.auth.session_cookie.secret_files",
    ),
    "password of Redis": (
        config("redis.url", f"redis://user:{SECRET}@redis:6379"),
        "set config.redis.password_file to /run/secrets/NAME/KEY",
    ),
    "password in a Sentinel URL": (
        config("redis.url", f"rediss+sentinel://:{SECRET}@a:1,b:2/m"),
        "set config.redis.password_file to /run/secrets/NAME/KEY",
    ),
    "password of the Sentinels": (
        config("redis.sentinel_password", SECRET),
        "set config.redis.sentinel_password_file to /run/secrets/NAME/KEY",
    ),
    "secret of the callback": (
        config("callback.secret", SECRET),
        "set config.callback.secret_file to /run/secrets/NAME/KEY",
    ),
    "callback with credentials": (config("callback.url", f"https://u:{SECRET}@app/"), "take them out"),
    "no keys": ({**config("auth.keys", []), "secretFiles": {"jwt": None}}, "no token could ever be accepted"),
    "no Redis": (config("redis.url", None), "its password comes from config.redis.password_file"),
    "setting as variable": (
        {"extraEnv": [{"name": "TOLLGATE_REDIS__PREFIX", "value": "ws:"}]},
        "write it under config, or, if it is a secret, under secretEnv",
    ),
    "computed setting as variable": (
        {"extraEnv": [{"name": "TOLLGATE_DRAIN__WINDOW", "value": "10m"}]},
        "computes ports, probes or the grace period from that setting",
    ),
    "computed setting as secret": (
        {"secretEnv": {"TOLLGATE_ADMIN__LISTEN": {"secretName": "a", "key": "b"}}},
        "computes ports, probes or the grace period from that setting",
    ),
    "variable that is not there": (key(secret_env="NEXTAUTH_SECRET"), "write secretEnv.NEXTAUTH_SECRET"),
    "file that is not there": (key(secret_file="/run/secrets/other/k"), "write secretFiles.other: {secretName: NAME}"),
    "key file that is not there": (config("api.key_file", "/run/secrets/api/k"), "write secretFiles.api"),
    "password file that is not there": (
        config("redis.password_file", "/run/secrets/redis/k"),
        "write secretFiles.redis",
    ),
    "callback's file that is not there": (config("callback.secret_file", "/run/secrets/cb/k"), "write secretFiles.cb"),
    "authority that is not there": (config("redis.ca_file", "/run/secrets/ca/k"), "write secretFiles.ca"),
    "Secret for nothing": (config("auth.keys", [{"jwks_url": "https://i/keys"}]), "or set secretFiles.jwt to null"),
    "policy without Prometheus": (
        {"networkPolicy": {"enabled": True, "adminFrom": []}, "metrics": {"serviceMonitor": {"enabled": True}}},
        "say where Prometheus is",
    ),
    "policy without the issuer": (merged(OWN_KEY, {"networkPolicy": {"enabled": True}}), "networkPolicy.extraEgress"),
    "relay in the gateway's file": (config("relay.url", "postgres://a@db/shop"), "move it to relay.config.relay"),
    "relay without Redis": (
        merged(relay("replicas", 1), {"replicaCount": 1}, config("broker.kind", "memory")),
        "in which no other process can publish: set config.broker.kind to redis",
    ),
    "relay without Postgres": (relay("config.relay.url", ""), "write relay.secretEnv.TOLLGATE_RELAY__URL"),
    "password of Postgres": (
        relay("config.relay.url", f"postgres://relay:{SECRET}@db/shop"),
        "set relay.config.relay.password_file to /run/secrets/NAME/KEY",
    ),
    "password behind the address of Postgres": (
        relay("config.relay.url", f"postgres://db/shop?user=relay&password={SECRET}"),
        "set relay.config.relay.password_file to /run/secrets/NAME/KEY",
    ),
    "password of the second address": (
        relay("config.relay.listen_url", f"postgresql://relay:{SECRET}@db:5432/shop"),
        "relay.config.relay.listen_url holds a password",
    ),
    "password of the relay's Redis": (
        relay("config.redis", {"url": f"redis://relay:{SECRET}@redis:6379"}),
        "set relay.config.redis.password_file to /run/secrets/NAME/KEY",
    ),
    "password of the relay's Sentinels": (
        relay("config.redis", {"sentinel_password": SECRET}),
        "set relay.config.redis.sentinel_password_file",
    ),
    "password of Postgres as variable": (
        relay("extraEnv", [{"name": "PGPASSWORD", "value": SECRET}]),
        "write it under relay.secretEnv",
    ),
    "relay's setting as variable": (
        relay("extraEnv", [{"name": "TOLLGATE_RELAY__RETENTION", "value": "7d"}]),
        "write it under relay.config, or, if it is a secret, under relay.secretEnv",
    ),
    "relay's computed setting": (
        relay("secretEnv", {"TOLLGATE_ADMIN__LISTEN": {"secretName": "a", "key": "b"}}),
        "computes ports or probes from that setting",
    ),
    "relay's file that is not there": (
        relay("config.relay.ca_file", "/run/secrets/ca/ca.pem"),
        "write relay.secretFiles.ca: {secretName: NAME}",
    ),
    "relay's Secret for nothing": (
        relay("config.relay.password_file", None),
        "or set relay.secretFiles.postgres to null",
    ),
    "route to no Gateway": ({"gatewayApi": {"enabled": True, "parentRefs": []}}, "name yours, such as"),
}

# The schema's own words differ between the helms; the path is in both.
MISSHAPEN = {
    "unknown value": ({"ingress": {"enable": True}}, "enable"),
    "unknown section": ({"replicas": 3}, "replicas"),
    "runbooks nowhere": ({"metrics": {"runbookUrl": "docs"}}, "runbookUrl"),
    "no replicas": ({"replicaCount": 0}, "replicaCount"),
    "text for a number": ({"replicaCount": "two"}, "replicaCount"),
    "unknown policy": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "unknown broker": (config("broker.kind", "kafka"), "kind"),
    "number for a duration": (config("drain.window", 20), "window"),
    "API keys that are no list": (config("api.keys", "key"), "keys"),
    "Secret without a name": ({"secretFiles": {"other": {}}}, "secretName"),
    "Secret without a key": ({"secretEnv": {"A": {"secretName": "a"}}}, "key"),
    "name that is no folder": ({"secretFiles": {"../x": {"secretName": "a"}}}, "../x"),
    "name that is no variable": ({"secretEnv": {"A-B": {"secretName": "a", "key": "b"}}}, "A-B"),
    "path that is relative": ({"publicPaths": ["ws"]}, "publicPaths"),
    "surge in words": ({"maxSurge": "a quarter"}, "maxSurge"),
    "relay's unknown value": (relay("replica", 3), "replica"),
    "no relays": (relay("replicas", 0), "replicas"),
    "token keys for the relay": (relay("config.auth", {"keys": []}), "auth"),
    "number for a retention": (relay("config.relay.retention", 86400), "retention"),
    "batch in words": (relay("config.relay.batch_bytes", "4MiB"), "batch_bytes"),
    "Secret of the relay without a name": (relay("secretFiles", {"other": {}}), "secretName"),
    "digest cut short": ({"image": {"digest": "sha256:00"}}, "digest"),
}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_fail_with_advice(helm, name):
    values, advice = WRONG[name]
    done = template(helm, values)
    assert done.returncode != 0
    assert advice in done.stderr
    assert SECRET not in done.stderr and not done.stdout
    # One problem each: no other check is hit by chance.
    assert done.stderr.count("\n- ") == 1, done.stderr


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", MISSHAPEN)
def test_misshapen_values_fail_by_the_schema(helm, name):
    values, where = MISSHAPEN[name]
    done = template(helm, values)
    assert done.returncode != 0
    assert "specifications of the schema" in done.stderr and where in done.stderr


def test_all_problems_are_told_at_once():
    done = template("helm-4", merged(config("broker.kind", "memory"), config("api.keys", [SECRET])))
    assert done.stderr.count("\n- ") == 2


@pytest.mark.parametrize(
    "values",
    [
        OWN_KEY,
        merged(OWN_KEY, {"networkPolicy": {"enabled": True, "extraEgress": [{"ports": [{"port": 443}]}]}}),
        key(jwk='{"kty":"EC","crv":"P-256","x":"a","y":"b"}'),
        {
            **config("auth.keys", None),
            "secretFiles": {"jwt": None},
            **{"secretEnv": {"TOLLGATE_AUTH__KEYS": {"secretName": "a", "key": "b"}}},
        },
        merged(key(secret_env="S"), {"secretEnv": {"S": {"secretName": "a", "key": "b"}}}),
        merged(
            key(secret_env="S"), {"extraEnv": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}
        ),
        merged(
            key(secret_file="/run/secrets/csi/k"),
            {
                "extraVolumes": [{"name": "csi"}],
                "extraVolumeMounts": [{"name": "csi", "mountPath": "/run/secrets/csi"}],
            },
        ),
        {"terminationGracePeriodSeconds": 30},
        # Turned off, the relay needs nothing.
        {"relay": {"config": {"relay": {"url": f"postgres://relay:{SECRET}@db/shop"}}}},
        relay("config.relay.url", "postgres://a,b/shop?target_session_attrs=read-write"),
        # The whole address is in a Secret, or libpq's variables are.
        *(
            merged(
                relay("config.relay", {"url": "", "password_file": None}),
                {"relay": {"secretFiles": {"postgres": None}, "secretEnv": {name: {"secretName": "a", "key": "b"}}}},
            )
            for name in ("TOLLGATE_RELAY__URL", "PGHOST")
        ),
        {"global": {"any": 1}},
    ],
)
def test_values_that_are_right(values):
    assert rendered("helm-3", values) == rendered("helm-4", values)
