"""Ctrl-C ends every script in one line, also while its libraries are imported, and so does want of memory."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import one_line
import pytest

SCRIPTS = sorted(path for path in Path(one_line.__file__).parent.glob("*.py") if path.name != "one_line.py")
PRESS = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def run(script: Path, path: Path) -> tuple[int, str]:
    process = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return process.returncode, process.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_listens_before_it_imports_anything_else(path):
    docstring, first, *rest = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring.value, ast.Constant) and ast.unparse(first) == "import one_line"
    assert [node.name for node in rest if isinstance(node, ast.FunctionDef) and node.name == "main"] == ["main"]


@pytest.mark.parametrize("name", ["run_audio_classification", "tag_audio", "convert_checkpoint", "run_folds"])
def test_ctrl_c_during_imports_is_one_line(tmp_path, name):
    """In a library that catches all errors."""
    (tmp_path / "modeling_ast.py").write_text(f"try:\n    {PRESS}\nexcept BaseException:\n    pass\n")
    (script,) = [path for path in SCRIPTS if path.stem == name]
    assert run(script, tmp_path) == (130, "Stopped by Ctrl-C.\n")


MAIN = {
    "within main": (f"{PRESS}", "Stopped by Ctrl-C.\n", 130),
    "caught in main": (f"try:\n        {PRESS}\n    except KeyboardInterrupt: sys.exit('mine')", "mine\n", 1),
    "put away": (
        f"try:\n        {PRESS}\n    finally: print('away', file=sys.stderr)",
        "away\nStopped by Ctrl-C.\n",
        130,
    ),
    "after main": (f"atexit.register(lambda: exec({PRESS!r}))", "Stopped by Ctrl-C.\n", 130),
    "nothing": ("pass", "", 0),
}


@pytest.mark.parametrize(("body", "said", "status"), MAIN.values(), ids=MAIN)
def test_ctrl_c_after_the_imports_is_one_line(tmp_path, body, said, status):
    shutil.copy(one_line.__file__, tmp_path)
    (tmp_path / "script.py").write_text(f"import one_line\nimport atexit, sys\ndef main():\n    {body}\nmain()\n")
    assert run(tmp_path / "script.py", tmp_path) == (status, said)


def test_want_of_memory_is_one_line_with_what_helps(capsys):
    with pytest.raises(SystemExit, match="^error: There is not enough memory. Fewer clips at a time need less"):
        one_line._tell(MemoryError, MemoryError(), None)
    error = RuntimeError("another one")
    one_line._tell(RuntimeError, error, None)
    assert capsys.readouterr().err == "RuntimeError: another one\n"


def test_faults_keep_their_traceback(tmp_path):
    shutil.copy(one_line.__file__, tmp_path)
    (tmp_path / "script.py").write_text("import one_line\nraise KeyError('x')\n")
    status, said = run(tmp_path / "script.py", tmp_path)
    assert status == 1 and said.startswith("Traceback") and said.endswith("KeyError: 'x'\n")
