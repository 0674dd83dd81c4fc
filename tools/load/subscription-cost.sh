#!/usr/bin/env bash
# What further subscriptions cost a gateway on this machine, in memory and CPU, and that publications
# without a subscriber cost it nothing. Starts a Redis and gateways of its own and stops them.
#   tools/load/subscription-cost.sh GATEWAY DRIVER [PORT]     (the two binaries; three ports from PORT on)
set -euo pipefail

gateway=$1 driver=$2 port=${3:-18000}
sockets=2000 further=50
hertz=$(getconf CLK_TCK)
work=$(mktemp -d)
export NEXTAUTH_SECRET=a-secret-for-this-measurement-only-32
export TOLLGATE_LOAD_SECRET=$NEXTAUTH_SECRET
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT

rss() { awk '$1 == "VmRSS:" { print $2 }' "/proc/$1/status"; }
cpu() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

# CHANNELS SUFFIX: so many rules that subscribe each socket by itself
configuration() {
  cat <<END
[broker]
kind = "redis"
[redis]
url = "redis://127.0.0.1:$port"
[limits]
connections_per_ip = 50000
http_connections = 50000
http_connections_per_ip = 50000
[log]
level = "warn"
[[auth.keys]]
secret_env = "NEXTAUTH_SECRET"
END
  for ((i = 1; i <= $1; i++)); do
    printf '[[channels]]\npattern = "c%d%s"\nallow = "%s"\nauto_subscribe = true\n' "$i" "$2" "$3"
  done
}

# CHANNELS SUFFIX RULE: prints KiB and ticks of the gateway
run() {
  configuration "$1" "$2" "$3" >"$work/tollgate.toml"
  "$gateway" serve --config "$work/tollgate.toml" --listen "127.0.0.1:$((port + 1))" \
    --admin-listen "127.0.0.1:$((port + 2))" 2>"$work/log" &
  local server=$! memory ticks idle
  until curl -sf "http://127.0.0.1:$((port + 2))/readyz" >/dev/null; do sleep 0.1; done
  memory=$(rss $server) ticks=$(cpu $server)
  "$driver" idle --url "ws://127.0.0.1:$((port + 1))/ws" -n $sockets --auto --channel "c1$2" --settle 20s \
    >/dev/null 2>&1 &
  local load=$!
  pids=("$redis" "$server" "$load")
  until curl -sf "http://127.0.0.1:$((port + 2))/metrics" |
    grep -qx "tollgate_subscriptions $((sockets * $1))"; do sleep 0.2; done
  sleep 1
  memory=$(($(rss $server) - memory)) ticks=$(($(cpu $server) - ticks))
  idle=$(cpu $server)
  redis-benchmark -q -p "$port" -c 1 -P 8 -n 100000 PUBLISH tollgate:c1:nobody x >/dev/null
  idle=$(($(cpu $server) - idle))
  kill $load $server
  wait $load $server 2>/dev/null || true
  echo "$memory $ticks $idle"
}

redis-server --port "$port" --save "" --dir "$work" --logfile "$work/redis" &
redis=$!
pids=("$redis")
until redis-cli -p "$port" ping 2>/dev/null | grep -q PONG; do sleep 0.1; done
for kind in ':{user} owner' ' authenticated'; do
  one=$(run 1 "${kind% *}" "${kind#* }")
  many=$(run $further "${kind% *}" "${kind#* }")
  awk -v one="$one" -v many="$many" -v n=$((sockets * (further - 1))) -v hz="$hertz" -v kind="$kind" \
    'BEGIN { split(one, a); split(many, b)
       what = kind ~ /owner/ ? "of its own" : "that others have"
       printf "a further subscription, to a channel %s: %.0f bytes, %.1f us\n",
         what, (b[1] - a[1]) * 1024 / n, (b[2] - a[2]) / hz / n * 1e6
       printf "100,000 publications that nobody here wants: %d ticks of %d ms\n", a[3], 1000 / hz }'
done
