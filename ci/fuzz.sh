#!/usr/bin/env bash
# Fuzzes what reads memory that a hostile process wrote. Installs cargo-fuzz if it is missing.
# The sanitizer needs a nightly compiler; without one, the stable one is told to be one.
#
# usage: ci/fuzz.sh [SECONDS]    how long for each target (20)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
if rustup run nightly rustc --version >/dev/null 2>&1 ||
    rustup toolchain install nightly --profile minimal >/dev/null 2>&1; then
    fuzz=(cargo +nightly fuzz)
else
    echo "fuzz: no nightly compiler, so RUSTC_BOOTSTRAP=1 on the stable one"
    export RUSTC_BOOTSTRAP=1
    fuzz=(cargo fuzz)
fi

for target in $("${fuzz[@]}" list); do
    mkdir -p "fuzz/corpus/$target" target
    "${fuzz[@]}" run "$target" -- -max_total_time="${1:-20}" -print_final_stats=1 2>&1 |
        tee "target/fuzz-$target.log" | tail -n 12
done
echo "fuzz: nothing found"
