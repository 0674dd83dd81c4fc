"""Writes the table of values into the chart's README: `readme.py [--check]`.

A value's text is the comment above it in values.yaml; a section's comment is a heading's text.
"""

import json
import pathlib
import re
import sys

import yaml

CHART = pathlib.Path(__file__).parent / "tollgate"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"
# Sections that are one value to whoever reads the table.
WHOLE = {
    "podSecurityContext",
    "securityContext",
    "resources",
    "autoscaling.behavior",
    "secretFiles",
    "relay.resources",
    "relay.secretFiles",
}


def comments(text: str) -> dict[str, str]:
    """The comment above each key, by dotted path."""
    found, above, path = {}, [], []
    for line in text.splitlines():
        if match := re.match(r"^( *)# ?(.*)", line):
            above.append(match[2])
        elif match := re.match(r"^( *)([A-Za-z_]+):", line):
            depth = len(match[1]) // 2
            path = [*path[:depth], match[2]]
            found.setdefault(".".join(path), " ".join(above))
            above = []
        else:
            above = []
    return found


def rows(values: dict, said: dict[str, str], prefix: str = ""):
    for name, value in values.items():
        path = f"{prefix}{name}"
        about = said.get(path, "")
        if isinstance(value, dict) and value and path not in WHOLE:
            if about:
                yield path, None, about
            yield from rows(value, said, f"{path}.")
        else:
            yield path, value, about


def table() -> str:
    text = (CHART / "values.yaml").read_text()
    lines = ["| value | default | |", "| --- | --- | --- |"]
    for path, default, about in rows(yaml.safe_load(text), comments(text)):
        shown = json.dumps(default).replace("|", "\\|")
        if default in ("", None, [], {}):
            shown = "" if default in ("", None) else f"`{shown}`"
        else:
            shown = f"`{shown}`"
        lines.append(f"| `{path}` | {shown} | {about} |")
    return "\n".join(lines) + "\n"


def written(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def main() -> None:
    path = CHART / "README.md"
    old = path.read_text()
    new = written(old)
    if "--check" in sys.argv and new != old:
        sys.exit("charts/tollgate/README.md is stale: `make docs` writes it")
    path.write_text(new)


if __name__ == "__main__":
    main()
