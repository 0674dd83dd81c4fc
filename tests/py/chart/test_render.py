"""What is rendered: valid for each Kubernetes and each CRD, the same from both helms, and as it is meant."""

import functools
import json
import pathlib
import shutil
import subprocess
import sys

import kubernetes_validate.utils
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus

from render import CASES, CHART, HELMS, TOGGLES, one, rendered
from support import ROOT

KUBERNETES = ("1.28", "1.34", "1.37")
# It reads a schema of megabytes for each document otherwise, which is most of the time that these tests take.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
kubernetes_validate.utils.all_versions = functools.cache(kubernetes_validate.utils.all_versions)

CRDS = {"ServiceMonitor": prometheus, "PrometheusRule": prometheus, "ScaledObject": keda}


def crd_problem(document: dict) -> str | None:
    """Models drop what they do not know, so what comes out is compared with what went in."""
    model = getattr(CRDS[document["kind"]], document["kind"])
    try:
        read = model.model_validate(document)
    except ValueError as e:
        return str(e)
    written = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return None if written == document else f"unknown fields: {written} is not {document}"


def route_problem(document: dict) -> str | None:
    command = ["node", str(ROOT / "tests/js/kubernetes/httproute.mjs")]
    done = subprocess.run(command, input=json.dumps(document), capture_output=True, text=True)
    return done.stderr or done.stdout if done.returncode else None


def kubernetes_problem(document: dict, version: str) -> str | None:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as e:
        return str(e)
    return None


def problems(document: dict) -> list[str]:
    return _problems(json.dumps(document, sort_keys=True))


# Most cases have most documents in common.
@functools.cache
def _problems(text: str) -> list[str]:
    document = json.loads(text)
    if document["kind"] in CRDS:
        found = [crd_problem(document)]
    elif document["kind"] == "HTTPRoute":
        found = [route_problem(document)]
    else:
        found = [kubernetes_problem(document, version) for version in KUBERNETES]
    return [problem for problem in found if problem]


@pytest.mark.parametrize("case", CASES)
def test_valid_and_the_same_from_both_helms(case):
    documents = rendered("helm-4", CASES[case])
    assert rendered("helm-3", CASES[case]) == documents
    for document in documents:
        assert not problems(document), document
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names))


def changed(document: dict, path: str, value) -> dict:
    """A copy in which one value is another; for a path such as `spec.ports.0.port`."""
    document = json.loads(json.dumps(document))
    *way, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    at = document
    for name in way:
        at = at[name]
    at[last] = value
    return document


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.replicas", "two"),
        ("Deployment", "spec.template.spec.containers.0.livenessprobe", {}),
        ("PodDisruptionBudget", "spec.minAvailible", 1),
        ("NetworkPolicy", "spec.ingress.0.ports.0.prot", "TCP"),
        ("Ingress", "spec.rules.0.http.paths.0.pathType", None),
        ("HorizontalPodAutoscaler", "spec.metrics.0.pods.target.averageUtil", 1),
        ("ServiceMonitor", "spec.endpoints.0.interval", "fifteen"),
        ("ServiceMonitor", "spec.endpoints.0.intervall", "15s"),
        ("PrometheusRule", "spec.groups.0.rules.0.form", "1m"),
        ("PrometheusRule", "spec.groups.0.rules.0.for", "soon"),
        ("ScaledObject", "spec.triggers.0.metadatas", {}),
        ("HTTPRoute", "spec.rules.0.timeouts.request", "zero"),
        ("HTTPRoute", "spec.rules.0.timeouts.requests", "0s"),
        ("HTTPRoute", "spec.rules.0.matches.0.path.type", "Exakt"),
    ],
)
def test_the_validators_find_mistakes(kind, path, value):
    case = "all but autoscaling" if kind == "ScaledObject" else "all but keda"
    good = next(d for d in rendered("helm-4", CASES[case]) if d["kind"] == kind)
    if kind == "Deployment":
        good = one(rendered("helm-4", {}), "Deployment")
    assert not problems(good)
    assert problems(changed(good, path, value))


def helm_does(helm: str, folder: pathlib.Path, *args) -> subprocess.CompletedProcess:
    env = {f"HELM_{name}_HOME": str(folder) for name in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run([f"{ROOT}/target/helm/{helm}", *args], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("helm", HELMS)
def test_lint(helm, tmp_path):
    values = tmp_path / "values.yaml"
    for case in CASES:
        values.write_text(json.dumps(CASES[case]))
        done = helm_does(helm, tmp_path, "lint", "--strict", "-f", values, CHART)
        assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "bad"
    shutil.copytree(CHART, bad)
    (bad / "templates/services.yaml").write_text("kind: [")
    assert helm_does(helm, tmp_path, "lint", "--strict", bad).returncode != 0


@pytest.mark.parametrize("helm", HELMS)
def test_the_package_holds_all(helm, tmp_path):
    assert helm_does(helm, tmp_path, "package", CHART, "-d", tmp_path).returncode == 0
    package = next(tmp_path.glob("tollgate-*.tgz"))
    case = CASES["all but keda"]
    assert rendered(helm, case, package) == rendered(helm, case)


def test_each_toggle_makes_its_kind():
    kinds = {
        "autoscaling.enabled": "HorizontalPodAutoscaler",
        "ingress.enabled": "Ingress",
        "gatewayApi.enabled": "HTTPRoute",
        "networkPolicy.enabled": "NetworkPolicy",
        "podDisruptionBudget.enabled": "PodDisruptionBudget",
        "metrics.serviceMonitor.enabled": "ServiceMonitor",
        "metrics.prometheusRule.enabled": "PrometheusRule",
        "keda.enabled": "ScaledObject",
    }
    off = {d["kind"] for d in rendered("helm-4", CASES["all off"])}
    assert off == {"ServiceAccount", "ConfigMap", "Service", "Deployment"}
    for toggle, kind in kinds.items():
        assert kind in {d["kind"] for d in rendered("helm-4", CASES[toggle])}
    dashboards = rendered("helm-4", CASES["metrics.dashboards.enabled"])
    # The relay has the kinds that the gateway has: test_relay.py.
    assert {*kinds, "metrics.dashboards.enabled", "relay.enabled"} == set(TOGGLES)
    files = {file.name: file.read_text() for file in CHART.glob("files/*.json")}
    assert files
    for name, text in files.items():
        found = [d for d in dashboards if name in d.get("data", {})]
        assert len(found) == 1
        assert found[0]["data"][name].rstrip() == text.rstrip()
        assert found[0]["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_alerts_go_through_as_they_are():
    rule = one(rendered("helm-3", CASES["metrics.prometheusRule.enabled"]), "PrometheusRule")
    written = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    assert rule["spec"] == written
    assert "{{" in json.dumps(rule)


def test_links_to_runbooks_lead_to_where_they_are_read():
    documents = rendered("helm-4", CASES["everything else"])
    rules = one(documents, "PrometheusRule")["spec"]["groups"]
    links = [rule["annotations"]["runbook_url"] for group in rules for rule in group["rules"] if "alert" in rule]
    assert links and all(link.startswith("https://git.example.com/runbooks/Tollgate") for link in links)
    dashboards = [text for d in documents for name, text in d.get("data", {}).items() if name.endswith(".json")]
    assert dashboards
    for text in dashboards:
        assert '"https://git.example.com/runbooks/README.md"' in text and "docs/runbooks" not in text


def test_no_disruption_budget_for_one_replica():
    def kinds(values):
        return {d["kind"] for d in rendered("helm-4", values)}

    assert "PodDisruptionBudget" in kinds({"replicaCount": 2})
    assert "PodDisruptionBudget" not in kinds({"replicaCount": 1})
    for toggle in ("autoscaling", "keda"):
        scaled = {"replicaCount": 5, toggle: {"enabled": True}}
        assert "PodDisruptionBudget" not in kinds(
            scaled | {"autoscaling": scaled.get("autoscaling", {}) | {"minReplicas": 1}}
        )
        assert "PodDisruptionBudget" in kinds(scaled)


def test_pods_are_restricted():
    for case in CASES:
        pods = [d["spec"]["template"]["spec"] for d in rendered("helm-4", CASES[case]) if d["kind"] == "Deployment"]
        for pod in pods:
            security = pod["securityContext"]
            assert security["runAsNonRoot"] and security["runAsUser"] == 65532
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
        for container in (container for pod in pods for container in pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            # A file that is mounted by subPath is never updated.
            assert not any("subPath" in mount for mount in container["volumeMounts"])


def test_autoscaled_deployments_have_no_replicas():
    for case, values in CASES.items():
        spec = one(rendered("helm-4", values), "Deployment")["spec"]
        scaled = any(values.get(name, {}).get("enabled") for name in ("autoscaling", "keda"))
        assert ("replicas" in spec) is not scaled, case


def test_memory_replicas_are_never_two_at_once():
    spec = one(rendered("helm-4", CASES["memory"]), "Deployment")["spec"]
    assert spec["strategy"] == {"type": "Recreate"}


def test_ports_follow_the_configuration():
    config = {"server": {"listen": "[::]:8100"}, "admin": {"listen": "0.0.0.0:9100"}}
    documents = rendered("helm-3", {"config": config})
    container = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {"http": 8100, "admin": 9100}
    for name in ("readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"]["port"] == "admin"
    for name in ("rel-tollgate", "rel-tollgate-admin"):
        ports = one(documents, "Service", name)["spec"]["ports"]
        assert [p["targetPort"] for p in ports] == ["admin" if name.endswith("admin") else "http"]


def test_versions_belong_together():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    cargo = (ROOT / "Cargo.toml").read_text()
    assert f'\nversion = "{chart["appVersion"]}"\n' in cargo
    assert chart["kubeVersion"] == f">={KUBERNETES[0]}.0-0"


def test_the_readme_is_generated(tmp_path):
    shutil.copytree(CHART, tmp_path / "tollgate")
    script = tmp_path / "readme.py"
    shutil.copy(ROOT / "charts/readme.py", script)

    def check() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)

    assert check().returncode == 0, check().stderr
    values = tmp_path / "tollgate/values.yaml"
    values.write_text(values.read_text().replace("replicaCount: 2", "replicaCount: 3"))
    stale = check()
    assert stale.returncode == 1 and "stale" in stale.stderr


def test_the_adapter_rule_in_the_documentation_is_the_shipped_one():
    shipped = (CHART / "examples/prometheus-adapter.yaml").read_text()
    rule = shipped[shipped.index("rules:") :]
    assert rule in (ROOT / "docs/kubernetes.md").read_text()
    found = yaml.safe_load(rule)["rules"]["custom"][0]
    scaler = one(rendered("helm-4", CASES["autoscaling.enabled"]), "HorizontalPodAutoscaler")
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == found["name"]["as"]
