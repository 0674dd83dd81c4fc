"""The systemd unit and the PM2 file: the gateway started from nothing but what they say, killed, and started again.

Taken out of the files, and run, is what they say; only /etc/tollgate and /usr/local/bin/tollgate are other paths.
systemd itself does not run here: its unit is checked by systemd-analyze, its commands are run by hand. PM2 is the real
one.
"""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import time
import tomllib

import pytest

from support import ROOT
from support.gateway import Admin
from support.net import free_port
from support.process import Process
from support.tokens import sign
from support.wait import eventually
from units import PACKAGING, UNITS, environment, unit, verified

PM2 = ROOT / "tests/js/node_modules/.bin/pm2"
# Holds what shells and systemd would take for something.
SECRET = 'a $HOME of "many" \\words # no comment ' + "x" * 32
# What a shell may hold that starts PM2, and what the gateway would refuse.
STRAY = {"TOLLGATE_LIMITS__CONECTIONS": "5", "NEXTAUTH_SECRET": "the-shells-own-secret-of-32-bytes-or-more"}


class Machine(Admin):
    """A folder for /etc/tollgate, and the ports of its gateway."""

    def __init__(self, folder: pathlib.Path, binary: str):
        self.etc, self.binary = folder / "etc", binary
        self.etc.mkdir()
        self.admin = free_port()
        listen = f'[server]\nlisten = "127.0.0.1:{free_port()}"\n[admin]\nlisten = "127.0.0.1:{self.admin}"\n'
        key = '[[auth.keys]]\nsecret_env = "NEXTAUTH_SECRET"\n'
        self.config = self.etc / "tollgate.toml"
        self.config.write_text(f'{listen}[drain]\nsettle = "100ms"\nwindow = "100ms"\n{key}')
        text = (PACKAGING / "tollgate.env").read_text()
        example = "#NEXTAUTH_SECRET='…'"
        assert text.count(example) == 1
        (self.etc / "tollgate.env").write_text(text.replace(example, f"NEXTAUTH_SECRET='{SECRET}'"))

    def here(self, text: str) -> str:
        assert "/etc/tollgate" in text and "/usr/local/bin/tollgate" in text
        return text.replace("/etc/tollgate", str(self.etc)).replace("/usr/local/bin/tollgate", self.binary)

    def takes_tokens_of(self, secret: str) -> bool:
        return self.json("/debug/token/check", sign("u1", secret).encode())["verdict"] == "accept"


@pytest.fixture
def machine(tollgate, tmp_path) -> Machine:
    return Machine(tmp_path, tollgate)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_unit(name, machine, tmp_path):
    text = machine.here((PACKAGING / name).read_text())
    assert not verified(tmp_path, text)
    for right, wrong in {"Type=exec": "Type=exek", "LimitCORE": "LimitCORES", "[Install]": "[Instal"}.items():
        assert right in text
        assert verified(tmp_path, text.replace(right, wrong)), wrong
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", tmp_path / "tollgate.service"]
    (tmp_path / "tollgate.service").write_text(text)
    assert subprocess.run(command, capture_output=True).returncode == 0
    softer = text.replace("ProtectSystem=strict\n", "").replace("NoNewPrivileges=yes\n", "")
    (tmp_path / "tollgate.service").write_text(softer)
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_the_files_fit_the_defaults():
    service = unit((PACKAGING / "tollgate.service").read_text())
    defaults = tomllib.loads((ROOT / "src/config/default.toml").read_text())
    seconds = [int(re.fullmatch(r"(\d+)s", defaults["drain"][name])[1]) for name in ("settle", "window")]
    # The gateway waits 3 s for the last sockets.
    assert int(service["TimeoutStopSec"]) > sum(seconds) + 3
    kill_timeout = re.search(r"kill_timeout: ([\d_]+)", (PACKAGING / "ecosystem.config.js").read_text())[1]
    assert int(kill_timeout.replace("_", "")) > (sum(seconds) + 3) * 1000
    assert int(service["LimitNOFILE"]) >= defaults["limits"]["connections"] + 1000


@pytest.mark.parametrize("name", UNITS)
def test_field_f11_no_core_file_holds_secrets(name):
    assert unit((PACKAGING / name).read_text())["LimitCORE"] == "0"


def test_systemd(machine, tmp_path):
    service = unit(machine.here((PACKAGING / "tollgate.service").read_text()))
    reloads = 'tollgate_config_reloads_total{result="unchanged"}'
    for _ in range(2):
        env = environment(service["EnvironmentFile"])
        with Process(tmp_path, "tollgate", *shlex.split(service["ExecStart"]), env=env) as process:
            eventually("ready", machine.is_ready)
            assert machine.takes_tokens_of(SECRET)
            assert not machine.takes_tokens_of(STRAY["NEXTAUTH_SECRET"])
            reload = service["ExecReload"].replace("$MAINPID", str(process.pid))
            assert machine.metric(reloads) == 0
            subprocess.run(shlex.split(reload), env={}, check=True)
            eventually("read again", lambda: machine.metric(reloads) == 1)
            process.send(signal.SIGTERM)
            assert process.child.wait(timeout=int(service["TimeoutStopSec"])) == 0


def test_a_bad_configuration_stops_for_good(machine):
    service = unit(machine.here((PACKAGING / "tollgate.service").read_text()))
    machine.config.write_text("[limits]\nconections = 5\n")
    env = environment(service["EnvironmentFile"])
    done = subprocess.run(shlex.split(service["ExecStart"]), env=env, capture_output=True)
    assert str(done.returncode) == service["RestartPreventExitStatus"]
    assert f"stop_exit_codes: [{done.returncode}]" in (PACKAGING / "ecosystem.config.js").read_text()


class Pm2:
    """PM2 with a home of its own, and a shell's stray environment."""

    def __init__(self, folder: pathlib.Path):
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PM2_HOME": str(folder / "pm2"), **STRAY}

    def __call__(self, *args) -> str:
        done = subprocess.run([PM2, *args], env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def listed(self) -> dict:
        # What it says of itself may come before the list.
        return json.loads(self("jlist").strip().splitlines()[-1])[0]

    def pid(self) -> int:
        found = self.listed()
        return found["pid"] if found["pm2_env"]["status"] == "online" else 0


def environ(pid: int) -> dict[str, str]:
    text = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in text.split("\0") if entry)


@pytest.fixture
def pm2(tmp_path):
    pm2 = Pm2(tmp_path)
    yield pm2
    pm2("kill")


def test_pm2(machine, pm2, tmp_path):
    text = (PACKAGING / "ecosystem.config.js").read_text()
    file = tmp_path / "ecosystem.config.js"
    file.write_text(machine.here(text))

    def check(pid: int) -> dict[str, str]:
        eventually("ready", machine.is_ready)
        assert os.readlink(f"/proc/{pid}/exe") == os.path.realpath(machine.binary)
        assert machine.takes_tokens_of(SECRET)
        found = environ(pid)
        assert not {name for name in found if name.startswith("TOLLGATE_")}
        return {name: value for name, value in found.items() if name != "_"}

    pm2("start", file)
    first = pm2.pid()
    env = check(first)
    assert env["NEXTAUTH_SECRET"] == SECRET

    os.kill(first, signal.SIGKILL)
    second = eventually("another process", lambda: (pid := pm2.pid()) != first and pid)
    assert check(second) == env

    pm2("save")
    pm2("kill")
    assert SECRET not in (tmp_path / "pm2/dump.pm2").read_text()
    pm2("resurrect")
    assert check(eventually("a third process", pm2.pid)) == env

    # What the file says now counts from the next start on.
    other = "another-secret-of-thirty-two-bytes-or-more"
    (machine.etc / "tollgate.env").write_text(f"NEXTAUTH_SECRET={other}\n")
    before = pm2.pid()
    pm2("restart", "tollgate")
    eventually("a fourth process", lambda: (pid := pm2.pid()) != before and pid)
    eventually("ready", machine.is_ready)
    assert machine.takes_tokens_of(other) and not machine.takes_tokens_of(SECRET)

    # It drains: stopped by its own end, and not by the time-out.
    began = time.monotonic()
    pm2("stop", "tollgate")
    assert pm2.listed()["pm2_env"]["status"] == "stopped"
    assert time.monotonic() - began < 20
    log = "".join(f.read_text() for f in (tmp_path / "pm2/logs").glob("tollgate-*.log"))
    assert "drained" in log
    assert "second signal" not in log
