#!/usr/bin/env bash
# Shows that the fence of a waker is needed: without it wakes are lost, with it none. It takes an
# optimised build, and two CPUs that run at the same time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UNMERGED_REQUIRE=store-buffer,two-cpus cargo test --release --test futex2_fences -- --nocapture
