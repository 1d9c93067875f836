"""The set-up of the two commands, with a Python that only writes down what it is asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import clone_with_python

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
case "$1 $2" in
    "--version "*) echo "Python 3.11.7" ;;
    "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip") echo "$@" >>pip.log ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    return clone_with_python(tmp_path, PYTHON, "setup.cfg", "pyproject.toml", "scripts/environment.sh")


def installs(clone: Path, *extras: str) -> list[str]:
    """What was installed by preparing for these extras, one after the other."""
    (clone / "pip.log").unlink(missing_ok=True)
    for extra in extras:
        subprocess.run(
            ["bash", "-c", f"set -euo pipefail; source scripts/environment.sh; prepare_environment {extra}"],
            cwd=clone,
            env={**os.environ, "PATH": f"{clone / 'bin'}:{os.environ['PATH']}"},
            check=True,
            capture_output=True,
        )
    log = clone / "pip.log"
    return [line.split()[-1] for line in log.read_text().splitlines()] if log.exists() else []


def test_nothing_is_installed_twice(clone):
    assert installs(clone, "train", "train") == [".[train]"]
    assert installs(clone, "test", "test", "train", "test") == [".[test]"]


def test_a_change_of_the_requirements_installs_again(clone):
    assert installs(clone, "test") == [".[test]"]
    with open(clone / "setup.cfg", "a") as file:
        file.write("# changed\n")
    assert installs(clone, "train") == [".[train]"]


def test_a_failed_installation_is_tried_again(clone):
    python = clone / "bin" / "python3"
    python.write_text(PYTHON.replace(">>pip.log ;;", ">>pip.log; exit 1 ;;"))
    with pytest.raises(subprocess.CalledProcessError):
        installs(clone, "train")
    python.write_text(PYTHON)
    assert installs(clone, "train") == [".[train]"]


def test_a_python_that_is_too_old_is_said(clone):
    (clone / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    for name in ("python3.13", "python3.12", "python3.11"):
        shutil.copy(clone / "bin" / "python3", clone / "bin" / name)
    with pytest.raises(subprocess.CalledProcessError) as error:
        installs(clone, "train")
    assert b"Python 3.11 or newer is needed" in error.value.stderr
