"""The systemd units: what systemd says of them, and what they say."""

import configparser
import pathlib
import shlex
import subprocess

from support import ROOT

PACKAGING = ROOT / "packaging"
UNITS = ("tollgate.service", "tollgate-relay.service")


def unit(text: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=", comment_prefixes="#")
    parser.optionxform = str
    parser.read_string(text)
    return parser["Service"]


def environment(file: str) -> dict[str, str]:
    """As systemd reads an EnvironmentFile, for values between '…'."""
    lines = [line for line in pathlib.Path(file).read_text().splitlines() if line and not line.startswith("#")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


def verified(folder: pathlib.Path, text: str) -> str:
    file = folder / "tollgate.service"
    file.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    # What it ignores it only warns of.
    return done.stderr if done.returncode or file.name in done.stderr else ""
