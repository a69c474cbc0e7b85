#!/usr/bin/env bash
# Installs what is missing of PROGRAM:PACKAGE pairs, as root; otherwise says what is.
set -euo pipefail

packages=()
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
((${#packages[@]})) || exit 0
echo "install: ${packages[*]}" >&2
((EUID == 0)) || { echo "install: please install them" >&2; exit 2; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
}
# The lists may be missing or too old for what they name: then once more.
install >"$log" 2>&1 || { apt-get update && install; } >>"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    exit 2
}
