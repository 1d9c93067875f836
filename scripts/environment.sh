# Sourced by quickstart.sh, test.sh and test_versions.sh: makes environments, and installs this package into .venv.

# What pytest is asked for, for all tests and for the quick ones.
all_tests=(--numprocesses 2 --dist loadfile)
quick_tests=(-m "not slow" "${all_tests[@]}")

# Prints the name of a Python that is new enough. Usage: find_python
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "Python 3.11 or newer is needed, and none was found as python3, python3.13, python3.12 or python3.11." >&2
    return 1
}

# Makes a virtual environment, empty where there was none. Usage: make_environment PYTHON FOLDER
make_environment() {
    "$1" -m venv "$2" || {
        echo "$1 cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    }
}

# Makes .venv and installs this package with an extra into it, unless that is done already.
# Usage: prepare_environment EXTRA
prepare_environment() {
    local stamp=".venv/installed-$1" python wanted
    python="$(find_python)" || return 1
    wanted="$("$python" --version) $(cat setup.cfg pyproject.toml | cksum)"
    # The extra test holds all the others.
    if grep -qsxF "$wanted" "$stamp" .venv/installed-test; then
        return 0
    fi
    echo "Installing into .venv (torch and its CUDA libraries are several gigabytes) ..."
    rm -f .venv/installed*
    make_environment "$python" .venv || return 1
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]" || return 1
    echo "$wanted" >"$stamp"
}
