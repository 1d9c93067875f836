#!/usr/bin/env bash
# The quick tests with the lowest versions that setup.cfg admits, or with the newest:
# `bash scripts/test_versions.sh oldest` or `newest`. Further arguments go to pytest. Each has an environment of its own,
# .venv-oldest or .venv-newest, which pip brings up to date at every call.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

versions="${1:-}"
if [ "$versions" != oldest ] && [ "$versions" != newest ]; then
    echo "Expected oldest or newest, got '$versions'. Usage: bash scripts/test_versions.sh oldest|newest [pytest arguments]" >&2
    exit 2
fi
shift
environment=".venv-$versions"
python="$environment/bin/python"
pip=("$python" -m pip --quiet --disable-pip-version-check)

# One line for each requirement in setup.cfg that has a lower bound: torch>=2.11,<2.15 gives torch==2.11.
lowest_versions() {
    "$python" - <<'EOF_PYTHON'
from configparser import RawConfigParser

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

setup = RawConfigParser()
setup.read("setup.cfg", encoding="utf-8")
for lines in [setup["options"]["install_requires"], *setup["options.extras_require"].values()]:
    for requirement in map(Requirement, lines.strip().splitlines()):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                requirement.extras, requirement.specifier = set(), SpecifierSet(f"=={bound.version}")
                print(requirement)
                break
EOF_PYTHON
}

# What is installed of the package's requirements, those of its extras too.
installed_versions() {
    "$python" - <<'EOF_PYTHON'
import platform
from importlib.metadata import requires, version

from packaging.requirements import Requirement

names = sorted({Requirement(line).name for line in requires("modeling_ast")})
print(f"Python {platform.python_version()}:", ", ".join(f"{name} {version(name)}" for name in names))
EOF_PYTHON
}

echo "Installing the $versions versions into $environment (torch and its CUDA libraries are several gigabytes) ..."
python3="$(find_python)"
make_environment "$python3" "$environment"
if [ "$versions" = oldest ]; then
    "${pip[@]}" install packaging # reads the bounds
    lowest_versions >"$environment/lowest.txt"
    "${pip[@]}" install --constraint "$environment/lowest.txt" --editable ".[test]"
else
    "${pip[@]}" install --upgrade --upgrade-strategy eager --editable ".[test]"
fi
installed_versions
exec "$python" -m pytest "${quick_tests[@]}" "$@"
