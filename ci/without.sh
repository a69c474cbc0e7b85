#!/usr/bin/env bash
# Runs the tests of per-CPU memory where rseq is not what they are used to: not registered by
# libc, and refused by the kernel. (FSGSBASE is taken away in ci/kernels.sh, 6.12/hard.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=(--lib)
for test in arch percpu percpu_area percpu_life ring stack_pool lock_array; do
    tests+=(--test "$test")
done
export GLIBC_TUNABLES=glibc.pthread.rseq=0
# What a test takes away itself has another name there.
unset UNMERGED_REQUIRE
cargo test --quiet "${tests[@]}"
echo "without: libc's registration: passed"

python3 ci/refuse.py 334 cargo test --quiet "${tests[@]}" # rseq(2)
echo "without: rseq(2): passed"
