"""What works where modeling_ast is installed without an extra, and what the rest says there."""

import ast
import json
import os
import re
import subprocess
import sys
from configparser import RawConfigParser
from functools import cache
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from packaging.requirements import Requirement

from modeling_ast import ASTFeatureExtractor, __version__
from modeling_ast.commands.command_line import commands

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "modeling_ast"
MODULE_NAMES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
# By the extra that brings what they lack first; the other commands do without.
COMMANDS = {
    "train": {
        "calibrate", "check", "compare", "embed", "ensemble", "evaluate", "explain", "fit", "folds", "pack", "predict",
        "prepare", "push", "review", "score", "search", "statistics", "pretrain", "teach", "train",
    },
    "demo": {"page"},
}  # fmt: skip
# And what these need besides.
SECOND = {"commands.review": "demo"}
# Modules that people import, and that run a model.
LIBRARY = ("embeddings", "explanations", "handler", "pipeline", "streaming", "timeline")
# Read by Python before all else: packages of the extras are there for nobody.
SITE = """
import sys
from importlib.machinery import PathFinder

class BaseFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = BaseFinder
"""
# Runs the model, and then command lines that are given as JSON; prints what came of them.
RUN = """
import contextlib, io, json, sys

import soundfile
from transformers import AutoModelForAudioClassification, pipeline

import modeling_ast
from modeling_ast.commands.command_line import run_command
from modeling_ast.inference.pipeline import audio_tagger

model, clip, lines = sys.argv[1:]
waveform, rate = soundfile.read(clip, dtype="float32")
classifier, tagger = pipeline("audio-classification", model=model), audio_tagger(model)
report = {
    "class": type(AutoModelForAudioClassification.from_pretrained(model)).__module__,
    "pipeline": classifier({"raw": waveform, "sampling_rate": rate}),
    "recording": tagger(clip),
    "ends": [],
}
for name, *rest in json.loads(lines):
    sys.argv = [f"modeling-ast {name}", *rest]
    said, told = io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            run_command(name)
        except SystemExit as stop:
            report["ends"].append([stop.code, said.buffer.getvalue().decode(), told.getvalue()])
print(json.dumps(report))
"""


def requirements() -> dict[str, set[str]]:
    """The packages in setup.cfg, by the extra that brings them; those that all need by "base"."""
    setup = RawConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    sections = {"base": setup["options"]["install_requires"], **setup["options.extras_require"]}
    return {
        extra: {Requirement(line).name for line in lines.strip().splitlines()} - {"modeling_ast"}
        for extra, lines in sections.items()
    }


def modules(packages: set[str]) -> set[str]:
    return {MODULE_NAMES.get(name, name) for name in packages}


@pytest.fixture(scope="module")
def base_install(tmp_path_factory) -> dict[str, str]:
    """The environment of processes that find what a base install has."""
    folder, listed = tmp_path_factory.mktemp("base"), requirements()
    refused = modules(set().union(*listed.values()) - listed["base"])
    assert {"datasets", "sklearn", "onnx", "gradio"} <= refused
    (folder / "sitecustomize.py").write_text(SITE.replace("{refused}", repr(refused)))
    info = folder / f"modeling_ast-{__version__}.dist-info"
    info.mkdir()
    lines = [
        f'Requires-Dist: {package}; extra == "{extra}"'
        for extra, packages in listed.items()
        for package in packages
        if extra != "base"
    ]
    (info / "METADATA").write_text("\n".join(["Name: modeling_ast", f"Version: {__version__}", *lines, ""]))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@cache
def imports(path: Path, everywhere: bool) -> set[str]:
    """Names of what a file imports; inside functions too where `everywhere`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"modeling_ast.{node.module}" if node.level else node.module
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def packages_of(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"modeling_ast"}


def test_what_is_imported_is_what_setup_cfg_lists():
    imported = set().union(*(imports(path, everywhere=True) for path in PACKAGE.rglob("*.py")))
    listed = requirements()
    of_users = set().union(*(listed[extra] for extra in ("base", "train", "lora", "search", "onnx", "demo")))
    assert packages_of(imported) == modules(of_users)


@pytest.mark.parametrize(
    "module", [*(f"commands.{name}" for name in commands()), *map("inference.{}".format, LIBRARY)]
)
def test_no_more_is_loaded_than_the_extra_brings(module):
    imported, seen = set(), set()
    pending = {PACKAGE / "auto_classes.py", PACKAGE / f"{module.replace('.', '/')}.py"}
    while pending:
        seen.add(path := pending.pop())
        imported |= imports(path, everywhere=False)
        ours = {ROOT / f"{name.replace('.', '/')}.py" for name in imported if name.startswith("modeling_ast.")}
        pending |= {file for file in ours - seen if file.is_file()}
    extra = next((extra for extra, names in COMMANDS.items() if module.removeprefix("commands.") in names), "base")
    listed = requirements()
    brought = listed["base"] | listed[extra] | listed[SECOND.get(module, "base")]
    assert len(seen) > 10 and packages_of(imported) <= modules(brought)


@pytest.mark.slow
def test_a_base_install_runs_models_and_names_what_the_rest_needs(base_install, tmp_path):
    model, sounds, out = tmp_path / "model", tmp_path / "sounds", tmp_path / "out"
    random_model(make_tiny_config(num_mel_bins=128, max_length=64)).save_pretrained(model)
    ASTFeatureExtractor(max_length=64).save_pretrained(model)
    sounds.mkdir()
    soundfile.write(sounds / "clip.wav", torch.rand(16000).numpy() / 2, 16000)
    tag = ["tag", sounds, "--model", model, "--output_dir", out]
    working = {
        "tag": tag,
        "average": ["average", model, model, "--output_dir", tmp_path / "average"],
        "recipe": ["recipe", "demo"],
        "convert": ["convert", "--help"],
        "export": ["export", "--help"],
    }
    lacking = [
        ["export", model, tmp_path / "model.onnx"],
        [*tag, "--formats", "png"],
        [*tag, "--formats", "parquet"],
        *([name] for names in COMMANDS.values() for name in names),
    ]
    lines = json.dumps([list(map(str, line)) for line in (*working.values(), *lacking)])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(model), str(sounds / "clip.wav"), lines],
        env=base_install,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["class"] == "modeling_ast.modeling_ast"
    assert report["pipeline"][0]["label"] == report["recording"][0]["label"]
    ends = report["ends"]
    assert [status for status, _, _ in ends[: len(working)]] == [0] * len(working), ends
    assert {"results.jsonl", "tags.csv", "events.csv", "timelines"} <= {path.name for path in out.iterdir()}
    assert working.keys() | {name for name, *_ in lacking} == commands().keys()
    extras = {"export": "onnx", "tag": "train"} | {name: extra for extra, names in COMMANDS.items() for name in names}
    for (name, *_), (status, said, told) in zip(lacking, ends[len(working) :], strict=True):
        assert (status, said) == (2, ""), name
        assert re.fullmatch(rf"error: .*\bpip install 'modeling_ast\[{extras[name]}\]'\n", told), (name, told)


@pytest.mark.slow
def test_a_command_that_cannot_be_imported_says_so_as_a_module_too(base_install, tmp_path):
    command = [sys.executable, "-m", "modeling_ast.commands.folds"]
    done = subprocess.run(command, env=base_install, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(r"error: psutil is not installed: pip install 'modeling_ast\[train\]'\n", done.stderr)
