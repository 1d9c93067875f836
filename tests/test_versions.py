"""The tests on the oldest and newest versions, with a Python that only writes down what it would install and run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import clone_with_python

ROOT = Path(__file__).resolve().parents[1]
# What comes on standard input is run for true.
PYTHON = f"""#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m p"*) echo "${{0#$PWD/}}" "$@" >>commands.log ;;
    "- ") exec {sys.executable} - ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    return clone_with_python(tmp_path, PYTHON, "setup.cfg", "scripts/environment.sh", "scripts/test_versions.sh")


def run(clone: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(clone / "scripts" / "test_versions.sh"), *arguments],
        env={**os.environ, "PATH": f"{clone / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_the_oldest_versions_are_those_of_setup_cfg(clone):
    done = run(clone, "oldest", "tests/test_fbank.py")
    assert done.returncode == 0, done.stderr
    bounds = re.findall(r"^    ([\w-]+)>=([\d.]+)", (clone / "setup.cfg").read_text(), re.MULTILINE)
    assert (clone / ".venv-oldest" / "lowest.txt").read_text().splitlines() == [
        f"{name}=={low}" for name, low in bounds
    ]
    assert {"torch", "transformers", "datasets", "onnx", "gradio"} < dict(bounds).keys()

    *_, install, tests = (clone / "commands.log").read_text().splitlines()
    assert install.endswith(" install --constraint .venv-oldest/lowest.txt --editable .[test]")
    assert (
        tests == ".venv-oldest/bin/python -m pytest -m not slow --numprocesses 2 --dist loadfile tests/test_fbank.py"
    )


def test_the_newest_versions_are_those_that_pip_chooses(clone):
    done = run(clone, "newest")
    assert done.returncode == 0, done.stderr
    install, tests = (clone / "commands.log").read_text().splitlines()
    assert install.endswith(" install --upgrade --upgrade-strategy eager --editable .[test]")
    assert tests == ".venv-newest/bin/python -m pytest -m not slow --numprocesses 2 --dist loadfile"


def test_the_versions_are_said_and_the_usual_environment_is_left_alone(clone):
    done = run(clone, "newest")
    assert f"Python {'.'.join(map(str, sys.version_info[:3]))}: " in done.stdout and ", transformers 5." in done.stdout
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("arguments", ((), ("middle",), ("--all",)))
def test_versions_that_do_not_exist_are_refused(clone, arguments):
    done = run(clone, *arguments)
    assert done.returncode == 2 and "Expected oldest or newest, got" in done.stderr
    assert not (clone / "commands.log").exists()
