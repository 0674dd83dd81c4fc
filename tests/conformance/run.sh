#!/usr/bin/env bash
# Runs the Autobahn test cases against the echo server. Needs: python3 with pip (kosoku carries the
# cases). Usage: tests/conformance/run.sh ECHO_BINARY [REPORT_FOLDER]
set -euo pipefail
echo_binary=$1
report=${2:-$(mktemp -d)}
mkdir -p "$report"
venv=${TOLLGATE_TOOLS:-$HOME/.cache/tollgate-tools}/kosoku-0.1.0
if [ ! -x "$venv/bin/kosoku" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check kosoku==0.1.0
fi
address_file=$(mktemp)
"$echo_binary" > "$address_file" &
server=$!
trap 'kill $server 2>/dev/null; rm -f "$address_file"' EXIT
for _ in $(seq 100); do [ -s "$address_file" ] && break; sleep 0.05; done
address=$(cat "$address_file")
"$venv/bin/kosoku" -m fuzzingclient -x '9.*' -x '12.*' -x '13.*' -o "$report" "ws://$address" > "$report/output.txt" || {
  tail -40 "$report/output.txt"; exit 1; }
tail -3 "$report/output.txt"
python3 - "$report/index.json" <<'P'
import collections, json, sys
cases = [c for agent in json.load(open(sys.argv[1])).values() for c in agent.values()]
count = collections.Counter(c["behavior"] for c in cases)
closes = collections.Counter(c["behaviorClose"] for c in cases)
bad = {k: v for k, v in (count + closes).items() if k not in ("OK", "NON-STRICT", "INFORMATIONAL")}
print("Autobahn:", len(cases), "cases:", ", ".join(f"{v} {k}" for k, v in sorted(count.items())),
      "| close:", ", ".join(f"{v} {k}" for k, v in sorted(closes.items())))
sys.exit(1 if bad or len(cases) < 247 else 0)
P
