#!/usr/bin/env bash
# Runs the storms of per-CPU memory, in release, for as long as is wanted: threads that
# migrate, yield and sleep, timers of 10 microseconds and SIGUSR1 whose handlers work on
# the same objects, drains, fences, forks, killed processes. Every item is accounted for.
#
# usage: ci/stress.sh [SECONDS]    how long each storm lasts in each implementation (10)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export UNMERGED_STRESS_SECONDS=${1:-10}
begin=$SECONDS
for test in percpu percpu_area ring stack_pool lock_array; do
    cargo test --release --quiet --test "$test"
done
echo "stress: no item lost or doubled, $((SECONDS - begin)) s"
