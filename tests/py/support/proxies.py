"""nginx and HAProxy with a configuration that is the test's, and the certificate that they show."""

import subprocess
from pathlib import Path

from support.net import listens
from support.process import Process


class Nginx(Process):
    """`servers` is what stands in nginx' `http` block."""

    def __init__(self, folder: Path, port: int, servers: str):
        self.port, file = port, folder / "nginx.conf"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temp = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        file.write_text(
            f"daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log stderr;\n"
            f"events {{ worker_connections 512; }}\nhttp {{\n{temp}{servers}}}\n"
        )
        super().__init__(folder, "nginx", "nginx", "-p", folder, "-e", "stderr", "-c", file)

    def is_ready(self) -> bool:
        return listens(self.port)


class HAProxy(Process):
    def __init__(self, folder: Path, port: int, config: str):
        self.port, file = port, folder / "haproxy.conf"
        file.write_text(config)
        assert subprocess.run(["haproxy", "-c", "-f", file], capture_output=True).returncode == 0
        super().__init__(folder, "haproxy", "haproxy", "-db", "-f", file)

    def is_ready(self) -> bool:
        return listens(self.port)


def certificate(folder: Path, host: str):
    """tls.crt and tls.key, and tls.pem with both."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / "tls.key"]
    names = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    command = ["openssl", "req", "-x509", "-days", "2", *key, "-out", folder / "tls.crt", *names]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "tls.pem").write_text((folder / "tls.crt").read_text() + (folder / "tls.key").read_text())
