#!/usr/bin/env bash
# Instructions of the hot path beside the baseline, benches/instructions.txt (`make instructions`).
#
# usage: benches/instructions.sh BINARY
#
# Each scenario runs twice under callgrind, with N and with 2N rounds: the difference by N is one round, so
# that the start of the process does not count. UPDATE=1 writes the baseline.
set -euo pipefail
binary=$(realpath "${1:?usage: benches/instructions.sh BINARY}")
cd "$(dirname "$0")/.."
baseline=benches/instructions.txt
limit=10 # percent

collected() {
  local said
  # Nothing is left of the environment: its size moves the stack.
  if ! said=$(env -i "$valgrind" --tool=callgrind --callgrind-out-file=/dev/null "$binary" "$1" "$2" 2>&1); then
    printf '%s\n' "$said" >&2
    return 1
  fi
  awk '/ Collected : / { print $NF; found = 1 } END { exit !found }' <<<"$said"
}

row() { printf '%-20s %10s %10s %10s\n' "$@"; }

valgrind=$(command -v valgrind)
# Libraries choose their code by what the processor can do.
features=$(grep -m1 '^flags' /proc/cpuinfo | tr ' ' '\n' | grep -xE 'avx2|bmi2|erms' | sort | xargs)
compiler="$(rustc --version), $(uname -m) $features"
new=() more=() fewer=()
row scenario baseline now change
list=$("$binary" --list)
while read -r scenario rounds; do
  once=$(collected "$scenario" "$rounds")
  twice=$(collected "$scenario" "$((2 * rounds))")
  now=$(((twice - once) / rounds))
  new+=("$scenario $now")
  before=$(awk -v name="$scenario" '$1 == name { print $2 }' "$baseline")
  if [ -z "$before" ]; then
    row "$scenario" - "$now" new
    more+=("$scenario")
    continue
  fi
  row "$scenario" "$before" "$now" "$(awk -v a="$before" -v b="$now" 'BEGIN { printf "%+.1f %%", (b - a) * 100 / a }')"
  if ((now * 100 > before * (100 + limit))); then more+=("$scenario"); fi
  if ((now * 100 < before * (100 - limit))); then fewer+=("$scenario"); fi
done <<<"$list"

if [ -n "${UPDATE:-}" ]; then
  {
    echo "# Instructions of one round; written by make instructions UPDATE=1 with"
    echo "# $compiler"
    printf '%s\n' "${new[@]}"
  } >"$baseline"
  echo "written: $baseline"
  exit
fi
write="make instructions UPDATE=1"
if [ ${#fewer[@]} -gt 0 ]; then
  echo "More than $limit % below the baseline: ${fewer[*]}. Lower it, so that it stays so: $write"
fi
if [ ${#more[@]} -gt 0 ]; then
  echo "More than $limit % above the baseline, or not in it: ${more[*]}. If that is meant: $write" >&2
  if ! grep -qxF "# $compiler" "$baseline"; then
    echo "Not judged: the baseline is of $(sed -n '2s/^# //p' "$baseline"), this is $compiler." >&2
    exit
  fi
  exit 1
fi
