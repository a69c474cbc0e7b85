#!/usr/bin/env bash
# Runs the loom models, then sees that each of them can fail: every line of
# ci/loom.mutants weakens one ordering, and the model that it names must notice.
#
# usage: ci/loom.sh [--models]    --models: without the mutants
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$PWD/target/loom"
export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-2}
cargo test --profile loom --lib models
[ "${1:-}" = --models ] || python3 ci/mutants.py ci/loom.mutants
