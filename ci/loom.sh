#!/usr/bin/env bash
# Runs the loom models, then sees that each of them can fail: every line of
# ci/loom.mutants weakens one ordering, and the model that it names must notice.
# That takes ten minutes, so .ci/run takes every third, another third with each commit.
#
# usage: ci/loom.sh [--models | --third]
#   --models    without the mutants
#   --third     with a third of them, by the number of commits
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$PWD/target/loom"
export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-2}
cargo test --profile loom --lib models
case ${1:-} in
    --models) ;;
    --third)
        commits=$(git rev-list --count HEAD || echo 0)
        python3 ci/mutants.py ci/loom.mutants $((commits % 3)) 3
        ;;
    *) python3 ci/mutants.py ci/loom.mutants ;;
esac
