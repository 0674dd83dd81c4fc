"""What the chart asks a running cluster: how many replicas there are. The cluster is a few answers of an API server."""

import http.server
import json
import subprocess
import threading

import pytest
import yaml

from render import CHART, HELMS, one
from support import ROOT

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "rel-tollgate",
        "namespace": "ns",
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "rel", "meta.helm.sh/release-namespace": "ns"},
    },
    "spec": {"replicas": 7},
}
# Helm 4 looks every kind up.
KINDS = {
    "v1": {"serviceaccounts": "ServiceAccount", "configmaps": "ConfigMap", "services": "Service"},
    "apps/v1": {"deployments": "Deployment"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
}


def group(name: str, version: str) -> dict:
    it = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [it], "preferredVersion": it}


def resources(group_version: str) -> dict:
    verbs = ["get", "list"]
    found = [{"name": n, "namespaced": True, "kind": k, "verbs": verbs} for n, k in KINDS[group_version].items()]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": found}


GROUPS = [group(*group_version.split("/")) for group_version in KINDS if "/" in group_version]
ANSWERS = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": GROUPS},
    "/api/v1": resources("v1"),
    **{f"/apis/{group_version}": resources(group_version) for group_version in KINDS if "/" in group_version},
    "/apis/apps/v1/namespaces/ns/deployments/rel-tollgate": DEPLOYMENT,
}


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = ANSWERS.get(self.path.split("?")[0])
        body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "code": 404, "reason": "NotFound"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def cluster():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(
    ("release", "toggle", "replicas"),
    [
        ("rel", "autoscaling.enabled=true", 7),
        ("rel", "keda.enabled=true", 7),
        ("rel", "autoscaling.enabled=false", 2),
        ("new", "autoscaling.enabled=true", None),
    ],
)
def test_turning_an_autoscaler_on_keeps_the_replicas(helm, release, toggle, replicas, cluster, tmp_path):
    env = {f"HELM_{name}_HOME": str(tmp_path) for name in ("CACHE", "CONFIG", "DATA")} | {"HOME": str(tmp_path)}
    command = [f"{ROOT}/target/helm/{helm}", "template", release, CHART, "-n", "ns", "--set", toggle]
    asking = ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", cluster]
    done = subprocess.run([*command, *asking], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert one(documents, "Deployment")["spec"].get("replicas") == replicas
