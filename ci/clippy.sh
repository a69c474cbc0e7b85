#!/usr/bin/env bash
# No warning of rustc or clippy, in any target.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
cargo clippy --all-targets -- -D warnings
# The models are another configuration of the same code: what nobody builds is not there.
RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo clippy --lib --tests --profile loom -- \
    -D warnings -A clippy::undocumented_unsafe_blocks
echo "clippy: clean"
