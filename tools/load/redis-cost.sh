#!/usr/bin/env bash
# What publications and subscriptions cost Redis on this machine: CPU out of /proc, bytes out of INFO.
# Starts servers of its own and stops them. docs/scaling.md explains the figures.
#   tools/load/redis-cost.sh [PORT]
set -euo pipefail

port=${1:-16379}
payload=$(printf 'x%.0s' {1..200})
hertz=$(getconf CLK_TCK)
work=$(mktemp -d)
server=
readers=()

stop() {
  [ ${#readers[@]} -eq 0 ] || kill "${readers[@]}" 2>/dev/null || true
  readers=()
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  [ -z "$server" ] || wait "$server" 2>/dev/null || true
  server=
}
trap 'stop; rm -rf "$work"' EXIT

start() {
  redis-server --port "$port" --save "" --dir "$work" --daemonize no --logfile "$work/log" "$@" &
  server=$!
  until redis-cli -p "$port" ping 2>/dev/null | grep -q PONG; do sleep 0.1; done
}

cpu() { awk '{ print $14 + $15 }' "/proc/$server/stat"; }
info() { redis-cli -p "$port" info "$1" | tr -d '\r' | awk -F: -v name="$2" '$1 == name { print $2 }'; }

# A subscriber that reads and does nothing else: COMMAND CHANNEL
reader() {
  bash -c 'exec 3<>/dev/tcp/127.0.0.1/$1; printf "%s %s\r\n" "$2" "$3" >&3; exec cat <&3 >/dev/null' \
    reader "$port" "$1" "$2" &
  readers+=($!)
  sleep 0.1
}

# COMMAND PIPELINE PUBLICATIONS
publish() {
  local bytes ticks
  bytes=$(info stats total_net_output_bytes) ticks=$(cpu)
  redis-benchmark -q -p "$port" -c 1 -P "$2" -n "$3" "$1" tollgate:post:42 "$payload" >/dev/null
  sleep 0.3
  awk -v t=$(($(cpu) - ticks)) -v hz="$hertz" -v n="$3" -v r="${#readers[@]}" -v p="$2" \
    -v b=$(($(info stats total_net_output_bytes) - bytes)) -v c="$1" \
    'BEGIN { printf "%s, %d subscribers, pipeline %d: %.2f us, %.0f bytes out (%.1f s of CPU)\n",
             c, r, p, t / hz / n * 1e6, b / n, t / hz }'
}

# COMMAND CONNECTIONS CHANNELS PER_COMMAND
subscribe() {
  local memory ticks before=$(($2 * $3))
  memory=$(info memory used_memory) ticks=$(cpu)
  for ((i = 0; i < $2; i++)); do
    awk -v c="$1" -v n="$3" -v each="$4" 'BEGIN { for (i = 0; i < n; i += each) { printf "%s", c
      for (j = i; j < i + each && j < n; j++) printf " tollgate:user:%d", j; printf "\r\n" } }' >"$work/commands"
    bash -c 'exec 3<>/dev/tcp/127.0.0.1/$1; cat <&3 >/dev/null & cat "$2" >&3; wait' \
      subscriber "$port" "$work/commands" &
    readers+=($!)
    until [ "$(redis-cli -p "$port" client list | grep -cE "s?sub=$3 ")" -gt "$i" ]; do sleep 0.2; done
  done
  awk -v t=$(($(cpu) - ticks)) -v hz="$hertz" -v n="$before" -v c="$1" -v k="$2" -v e="$4" \
    -v m=$(($(info memory used_memory) - memory)) \
    'BEGIN { printf "%s, %d connections, %d a command: %.2f us, %.0f bytes of memory a subscription\n",
             c, k, e, t / hz / n * 1e6, m / n }'
}

start
for readers_now in 0 1 2 4 8; do
  while [ ${#readers[@]} -lt "$readers_now" ]; do reader SUBSCRIBE tollgate:post:42; done
  publish PUBLISH 1 "${LONE:-80000}"
  publish PUBLISH 32 "${PIPED:-400000}"
done
stop
start
subscribe SUBSCRIBE 1 200000 512
stop
start
subscribe SUBSCRIBE 2 200000 512
stop
start --cluster-enabled yes
redis-cli -p "$port" cluster addslotsrange 0 16383 >/dev/null
until redis-cli -p "$port" cluster info | grep -q cluster_state:ok; do sleep 0.1; done
for readers_now in 1 4; do
  while [ ${#readers[@]} -lt "$readers_now" ]; do reader SSUBSCRIBE tollgate:post:42; done
  publish SPUBLISH 1 "${LONE:-80000}"
  publish SPUBLISH 32 "${PIPED:-400000}"
done
stop
start --cluster-enabled yes
redis-cli -p "$port" cluster addslotsrange 0 16383 >/dev/null
until redis-cli -p "$port" cluster info | grep -q cluster_state:ok; do sleep 0.1; done
subscribe SSUBSCRIBE 1 200000 1
