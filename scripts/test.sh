#!/usr/bin/env bash
# Lint and test: `bash scripts/test.sh`, or with --all the slow tests too. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment test

selection=("${quick_tests[@]}")
if [ "${1:-}" = "--all" ]; then
    selection=("${all_tests[@]}")
    shift
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "${selection[@]}" "$@"
