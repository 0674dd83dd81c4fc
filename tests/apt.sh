#!/usr/bin/env bash
# Installs Debian packages for `make`; where there is no apt-get it names what is missing.
#   tests/apt.sh PACKAGE...
set -euo pipefail
[ $# -gt 0 ] || exit 0
command -v apt-get >/dev/null || { echo "please install: $*"; exit 1; }
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
echo "installing $*"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qq -y --no-install-recommends "$@" >/dev/null
