#!/usr/bin/env bash
# Runs every arm of every bench once, as a test: the figures mean nothing, the code works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo test --bench ratios
