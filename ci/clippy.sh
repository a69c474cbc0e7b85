#!/usr/bin/env bash
# No warning of rustc or clippy, in any target.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
cargo clippy --all-targets -- -D warnings
echo "clippy: clean"
