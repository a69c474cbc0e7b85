#!/usr/bin/env bash
# The documentation builds without a warning: no broken link, no missing item.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items
echo "docs: clean"
