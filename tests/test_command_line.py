"""What ends a command is one line and an exit status, also while its libraries are imported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import end_of, restored_signals
from tqdm.auto import tqdm

from modeling_ast.commands import command_faults, command_line, train
from modeling_ast.commands.command_line import commands

ROOT = Path(__file__).resolve().parents[1]
PRESS = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
ENTRY_POINT = [
    sys.executable,
    "-c",
    "import sys; sys.argv[:1] = ['modeling-ast']; from modeling_ast.commands.command_line import main; main()",
]
HEAVY = {"torch", "transformers", "numpy", "datasets"}
WAYS = {
    "entry point": [*ENTRY_POINT, "tag"],
    "module": [sys.executable, "-m", "modeling_ast.commands.tag"],
    "script": [sys.executable, str(ROOT / "scripts" / "run_audio_classification.py")],
}


def run(command: list[str], first: Path | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process that finds libraries in a folder first."""
    path = os.pathsep.join(map(str, filter(None, [first, ROOT])))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_command_and_imports_nothing_heavy():
    heavy = "('torch', 'transformers', 'numpy', 'datasets')"
    code = f"{ENTRY_POINT[2]}".replace(
        "main()", "\ntry: main()\nfinally: print([x for x in {heavy} if x in sys.modules])"
    )
    status, said, _ = run([sys.executable, "-c", code.replace("{heavy}", heavy), "--help"])
    assert status == 0 and said.endswith("[]\n")
    names = {path.stem for path in (ROOT / "modeling_ast" / "commands").glob("*.py")}
    names -= {"__init__", *(f"command_{name}" for name in ("faults", "line", "options", "page_options", "signals"))}
    assert names == commands().keys() and all(f"\n  {name} " in said for name in names)
    assert all(line.endswith(".") and len(line) < 140 for line in commands().values())


@pytest.mark.parametrize("words", [[], ["no_command"], ["tag"], ["tag", "--no_option"]])
def test_a_command_line_that_cannot_be_used_ends_with_status_2(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["modeling-ast", *words])
    with restored_signals(), pytest.raises(SystemExit, match="^2$"):
        command_line.main()
    said, errors = capsys.readouterr()
    assert said == "" and "error: " in errors and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("command", WAYS.values(), ids=WAYS)
def test_ctrl_c_during_imports_is_one_line(tmp_path, command):
    """In a library that catches all errors."""
    (tmp_path / "transformers.py").write_text(f"try:\n    {PRESS}\nexcept BaseException:\n    pass\n")
    assert run(command, tmp_path) == (130, "", "Stopped by Ctrl-C.\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", WAYS.values(), ids=WAYS)
def test_torchaudio_that_cannot_be_loaded_is_one_sentence(tmp_path, command):
    """What PyPI's torchaudio does beside a torch built for another CUDA."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise RuntimeError('built for CUDA 99')\n")
    status, _, said = run(command, tmp_path)
    assert status == 2 and said.count("\n") == 1
    assert "torchaudio" in said and "cannot be loaded with torch" in said and "pip install" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_command_is_one_line_behind_what_is_put_away(monkeypatch, number):
    away = []

    def main():
        try:
            signal.raise_signal(number)
            time.sleep(10)
        finally:
            away.append(number)

    monkeypatch.setattr(train, "main", main)
    status, said = end_of("train")
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert status == 128 + number and away == [number]
    assert said.startswith(f"Stopped by {name}. The same command with --resume_from_checkpoint true goes on")


def test_nothing_is_drawn_below_the_sentence_that_a_command_ends_with(monkeypatch, capsys):
    def main():
        main.bar = tqdm(total=2, file=sys.stderr)
        main.bar.update()
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "main", main)
    end_of("train")
    main.bar.close()  # as Python does it in the end
    assert capsys.readouterr().err.splitlines()[-1].startswith("Stopped by Ctrl-C.")


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 1])
def test_a_signal_after_the_work_changes_nothing(status):
    """While Python puts its modules away."""
    code = (
        "import os, signal\n"
        "from modeling_ast.commands import command_line, train\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, process=os.getpid()):\n"
        "        [kill(process, number) for number in (2, 15)]\n"
        "train.late = Late()\n"
        f"train.main = lambda: {status}\n"
        "command_line.run_command('train')\n"
    )
    assert run([sys.executable, "-c", code]) == (status, "", "")


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_a_command_without_a_word(tmp_path):
    code = ENTRY_POINT[2].replace("'modeling-ast'", "'modeling-ast', 'recipe', 'demo'")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


def raising(error: Exception):
    def main():
        raise error

    return main


def test_want_of_memory_is_one_line_with_what_helps(monkeypatch):
    monkeypatch.setattr(train, "main", raising(MemoryError()))
    status, said = end_of("train")
    assert status == 2 and said.startswith("error: There is not enough memory. Fewer clips at a time need less")


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(command_faults, "requires", lambda _: ["torch", 'onnxruntime>=1; extra == "onnx"'])
    monkeypatch.setattr(train, "main", raising(ModuleNotFoundError("No module", name="onnxruntime.capi")))
    status, said = end_of("train")
    assert status == 2
    assert said == "error: onnxruntime is not installed: pip install 'modeling_ast[onnx]'"


def test_faults_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(train, "main", raising(KeyError("x")))
    with pytest.raises(KeyError, match="x"):
        end_of("train")


def test_what_main_gives_is_the_exit_status_where_it_is_a_number(monkeypatch):
    for result, status in ((None, 0), ({"accuracy": 1}, 0), (1, 1)):
        monkeypatch.setattr(train, "main", lambda result=result: result)
        assert end_of("train") == (status, "")
