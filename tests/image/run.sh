#!/usr/bin/env bash
# Builds the image from a binary and runs it as Kubernetes would: own root, read-only, user 65532, no capabilities.
#   run.sh BINARY
# The image stays in target/image/oci. Where no registry can be reached, debootstrap makes the base that the Dockerfile names.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=$1 image=tollgate folder=$PWD/target/image
base=docker.io/library/debian:bookworm-slim
# Both work inside containers too.
export BUILDAH_ISOLATION=chroot
store=(--root "$folder/storage" --runroot "$folder/run" --storage-driver vfs)
mkdir -p "$folder"

if ! buildah "${store[@]}" inspect --type image "$base" >/dev/null 2>&1 &&
   ! buildah "${store[@]}" pull -q "$base" >/dev/null 2>&1; then
  echo "no registry: making $base with debootstrap"
  rm -rf "$folder/base" && debootstrap --variant=minbase bookworm "$folder/base" >"$folder/debootstrap.log"
  made=$(buildah "${store[@]}" from scratch)
  buildah "${store[@]}" add -q "$made" "$folder/base" / >/dev/null
  buildah "${store[@]}" commit -q --rm "$made" "$base" >/dev/null
  rm -rf "$folder/base"
fi

# The context is what .dockerignore lets through, with the given binary as the one that `make build` makes.
context=$folder/context
rm -rf "$context" && mkdir -p "$context/target/release"
cp -r Dockerfile .dockerignore packaging "$context/"
cp "$binary" "$context/target/release/tollgate"
buildah "${store[@]}" bud --pull-never --build-arg BINARY=prebuilt -t "$image" "$context" >"$folder/build.log" 2>&1 ||
  { tail -20 "$folder/build.log"; exit 1; }
rm -rf "$folder/oci" "$folder/bundle"
buildah "${store[@]}" push -q "$image" "oci:$folder/oci:tollgate"
umoci unpack --image "$folder/oci:tollgate" "$folder/bundle"
root=$folder/bundle/rootfs

# What it is made of.
skopeo inspect --config "oci:$folder/oci:tollgate" | python3 -c '
import json, sys
config = json.load(sys.stdin)["config"]
assert config["User"] == "65532:65532", config
assert config["Entrypoint"] == ["/usr/local/bin/tollgate"] and config["Cmd"] == ["serve"], config
assert set(config["ExposedPorts"]) == {"8000", "9000"} or set(config["ExposedPorts"]) == {"8000/tcp", "9000/tcp"}, config
assert config["Labels"]["org.opencontainers.image.title"] == "tollgate", config'
test "$(grep -c 'BEGIN CERTIFICATE' "$root/etc/ssl/certs/ca-certificates.crt")" -gt 100
for absent in bin/sh usr/bin/dpkg usr/bin/apt; do test ! -e "$root/$absent"; done
test -z "$(find "$root" -perm /6000)"
size=$(du -sm --apparent-size "$root" | cut -f1)
packed=$(du -sm --apparent-size "$folder/oci" | cut -f1)
echo "$image: $size MB, $packed MB packed"
test "$size" -le 25

# And runs. The host's network, so that the ports can be asked.
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free) admin=$(free)
key=$(openssl rand -base64 48 | tr -d '\n')
umask 022
mkdir -p "$folder/bundle/etc"
printf '%s\n' "$key" >"$folder/bundle/etc/secret"
cat >"$folder/bundle/etc/tollgate.toml" <<END
[server]
listen = "127.0.0.1:$port"
[admin]
listen = "127.0.0.1:$admin"
[drain]
settle = "100ms"
window = "100ms"
[[auth.keys]]
secret_file = "/etc/tollgate/secret"
END
python3 - "$folder/bundle" <<'P'
import json, sys
path = sys.argv[1] + "/config.json"
spec = json.load(open(path))
assert (spec["process"]["user"]["uid"], spec["process"]["user"]["gid"]) == (65532, 65532)
assert spec["process"]["args"] == ["/usr/local/bin/tollgate", "serve"]
spec["process"]["args"] += ["--config", "/etc/tollgate/tollgate.toml"]
spec["process"].update(terminal=False, capabilities={}, noNewPrivileges=True)
spec["root"]["readonly"] = True
spec["linux"].pop("resources", None)
spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "network"]
spec["mounts"] = [m for m in spec["mounts"] if m["type"] not in ("sysfs", "cgroup")]
mount = {"destination": "/etc/tollgate", "type": "bind", "source": sys.argv[1] + "/etc", "options": ["rbind", "ro"]}
spec["mounts"].append(mount)
json.dump(spec, open(path, "w"))
P
name=tollgate-image-$$
runc run --bundle "$folder/bundle" "$name" >"$folder/gateway.log" 2>&1 &
process=$!
trap 'runc kill "$name" KILL 2>/dev/null || true; wait "$process" 2>/dev/null || true; runc delete -f "$name" 2>/dev/null || true' EXIT
for _ in $(seq 200); do
  curl -fs "http://127.0.0.1:$admin/livez" >/dev/null 2>&1 && break
  kill -0 "$process" 2>/dev/null || { cat "$folder/gateway.log"; exit 1; }
  sleep 0.1
done
curl -fsS "http://127.0.0.1:$admin/livez" | grep -q '"alive":true'
curl -fsS "http://127.0.0.1:$admin/readyz" | grep -q '"ready":true'
inside=$(runc ps -f json "$name" | tr -d '[]' | cut -d, -f1)
grep -qE '^Uid:\s+65532\s' "/proc/$inside/status" && grep -qE '^CapEff:\s+0+$' "/proc/$inside/status"
runc kill "$name" TERM
wait "$process"
trap - EXIT
echo "it runs as 65532 on a read-only root, answers /livez and /readyz, and ends with 0"
