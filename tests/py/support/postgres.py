"""A Postgres that keeps nothing, with trust for everybody who reaches its port."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from support.net import free_port
from support.process import Process


def program(name: str) -> str:
    """Debian keeps the server's own programs out of the PATH, in a folder of its version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    path = str(found[-1]) if found else shutil.which(name)
    assert path, f"{name} is not installed"
    return path


class Postgres(Process):
    def __init__(self, folder: Path, nice: int = 0):
        self.port = free_port()
        # Not in `folder`, which nobody but root may enter when root runs the tests, and Postgres refuses root.
        self.data = Path(tempfile.mkdtemp(prefix="tollgate-postgres-"))
        user = []
        if os.geteuid() == 0:
            shutil.chown(self.data, "postgres", "postgres")
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        init = [program("initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*user, *init], check=True, capture_output=True, cwd="/")
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        command = [*user, program("postgres"), "-D", self.data, "-p", self.port, *options]
        super().__init__(folder, f"postgres-{self.port}", *command, nice=nice)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}"

    def psql(self, database: str = "postgres") -> list[str]:
        return ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", self.url(database)]

    def sql(self, text: str, database: str = "postgres") -> str:
        done = subprocess.run(self.psql(database), input=text, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    def migrate(self, tollgate: str, database: str = "postgres"):
        """The outbox, and a user `relay` with the relay's rights and no others."""
        command = [tollgate, "relay", "sql"]
        self.sql(subprocess.run(command, check=True, capture_output=True, text=True).stdout, database)
        known = self.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'relay'") == "1"
        self.sql(f"{'' if known else 'CREATE ROLE relay LOGIN;'} GRANT tollgate_relay TO relay", database)

    def is_ready(self) -> bool:
        return self.sql("SELECT 1") == "1"

    def end(self, what: signal.Signals = signal.SIGQUIT) -> int:
        # Its processes lead groups of their own, so that a kill would reach the first of them alone.
        return super().end(what)

    def __exit__(self, *error):
        super().__exit__(*error)
        shutil.rmtree(self.data)
