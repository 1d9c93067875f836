"""What must be equal is, what may differ does so by no more than it should, and what is broken shows."""

import json
import math
import shutil
from pathlib import Path

import differences
import measure_differences as script
import pytest
import soundfile
import torch
from comparison import generate_sounds, has_compiler
from conftest import make_tiny_config, random_model
from differences import COMPARISONS, Comparison, Subject, classify, difference, measure
from measure_differences import PLAIN, TRAINING, Run, RunComparison, Runs, compare_runs
from measuring import BenchmarkError
from safetensors.torch import load_file, save_file

from modeling_ast import ASTFeatureExtractor
from modeling_ast import fbank as fbank_module
from modeling_ast import modeling_ast as network

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

# How far each may be apart, as a multiple of the spread: ten times or more of what was measured here.
BOUNDS = {
    "features": {
        "2 threads : 1": 1e-6,
        "a batch : each clip alone": 1e-6,
        "in blocks as they arrive : whole": 1e-6,
        "float32 : float64": 1e-2,  # 6e-5, in the quietest bins
        "ours : torchaudio's": 1e-5,
        "resampled in pieces : at once": 1e-5,
        "resampled by ours : by torchaudio": 1e-4,
    },
    "logits": {
        "a second time : the first": 0,
        "2 threads : 1": 1e-5,
        "batches of 1 : of 8": 1e-5,
        "own lengths in batches, padded and masked : alone": 1e-5,
        "MLP at once (gradients) : in pieces": 1e-5,
        "last layer of all tokens : of the pooled": 1e-5,
        "eager : sdpa": 1e-5,
        "flex_attention : sdpa": 1e-5,
        "compiled : not": 1e-5,
        "fp32 : fp64": 1e-5,
        "Transformers' AST : ours, same epsilon": 1e-5,
        "Transformers' AST : ours": 1e-3,
        "mean of the waveform removed : left": 1e-3,
        "fp16 : fp32": 0.05,
        "bf16 : fp32": 0.3,
        "bf16 autocast : fp32": 0.3,
        "bf16, eager : sdpa": 0.4,
        "ONNX fp32 : torch": 1e-4,
        "ONNX int8 : torch": 2.0,
    },
    "training": {
        "a second time : the first": 0,
        "2 data workers : none": 0,
        "evaluated in batches of 3 : of 8": 1e-5,
        "2 threads : 1": 5e-3,
        "2 accumulated batches : 1": 5e-3,
        "2 processes : 1": 5e-3,
        "eager : sdpa": 5e-3,
        "bf16 : fp32": 0.5,
        "2 accumulated batches : 1, with dropout": 2.0,
        "another seed : the same": 20.0,
    },
}
NEED_TIME = ("flex_attention : sdpa", "compiled : not", "ONNX fp32 : torch", "ONNX int8 : torch")
MUST_BE_EQUAL = {
    ("logits", "a second time : the first"),
    ("training", "a second time : the first"),
    ("training", "2 data workers : none"),
}


def name(each: Comparison | RunComparison) -> str:
    return each.compared


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, saved with its feature extractor."""
    folder = tmp_path_factory.mktemp("model")
    random_model(make_tiny_config(head_layer_norm_eps=1e-5)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)
    return folder


def make_subject(folder: Path, work_folder: Path, **options) -> Subject:
    """Ten clips of 0.5 to 0.65 s."""
    clips = [sound[: 8000 + 256 * number] for number, sound in enumerate(generate_sounds(10))]
    model = random_model(make_tiny_config())
    return Subject(folder, model, ASTFeatureExtractor.from_pretrained(folder), clips, work_folder, **options)


@pytest.fixture(scope="module")
def subject(folder, tmp_path_factory) -> Subject:
    return make_subject(folder, tmp_path_factory.mktemp("work"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that the MLP of these few tokens is computed in pieces too."""
    for module in (network, differences):
        monkeypatch.setattr(module, "MLP_TOKENS", 32)


def find(group: str, compared: str) -> Comparison:
    return next(each for each in COMPARISONS if (each.group, each.compared) == (group, compared))


def assert_within_bounds(row: differences.Difference) -> None:
    assert math.isfinite(row.largest) and 0 <= row.relative <= BOUNDS[row.group][row.compared], row
    assert row.is_as_promised


# Features and logits


def test_every_comparison_has_a_bound_and_says_whether_it_must_be_equal():
    rows = [(each.group, each.compared, each) for each in COMPARISONS]
    rows += [("training", each.compared, each) for each in TRAINING]
    assert {(group, compared) for group, bounds in BOUNDS.items() for compared in bounds} == {row[:2] for row in rows}
    assert {row[:2] for row in rows if row[2].must_be_equal} == MUST_BE_EQUAL


@pytest.mark.parametrize("each", [each for each in COMPARISONS if each.compared not in NEED_TIME], ids=name)
def test_what_may_differ_does_so_by_no_more_than_it_should(subject, each):
    row = measure(each, subject)
    assert_within_bounds(row)
    assert not row.note
    assert (row.equal_top1 == 1) if each.group == "logits" else row.equal_top1 is None


@pytest.mark.parametrize(
    "compared, least",
    [("fp16 : fp32", 1e-4), ("bf16 : fp32", 1e-3), ("bf16 autocast : fp32", 1e-3), ("bf16, eager : sdpa", 1e-3)]
    + [("fp32 : fp64", 1e-8), ("Transformers' AST : ours", 1e-6), ("mean of the waveform removed : left", 1e-8)],
)
def test_ways_that_round_otherwise_are_seen_to_differ(subject, compared, least):
    """Or both sides would be one."""
    assert measure(find("logits", compared), subject).relative > least


@pytest.mark.slow
@pytest.mark.parametrize("compared", ["flex_attention : sdpa", "compiled : not"])
def test_compiled_code_gives_the_same_up_to_rounding(folder, tmp_path, compared):
    if not has_compiler():
        pytest.skip("needs a C++ compiler")
    row = measure(find("logits", compared), make_subject(folder, tmp_path, may_compile=True))
    assert_within_bounds(row)
    assert row.equal_top1 == 1


@pytest.mark.slow
def test_graphs_give_the_same_up_to_rounding(folder, tmp_path):
    pytest.importorskip("onnxscript")
    subject = make_subject(folder, tmp_path)
    exact, rounded = (measure(find("logits", f"ONNX {precision} : torch"), subject) for precision in ("fp32", "int8"))
    for row in (exact, rounded):
        assert_within_bounds(row)
    assert exact.equal_top1 == 1
    assert rounded.relative > 10 * exact.relative


# What cannot be measured


def test_without_a_compiler_or_time_for_it_compiled_code_is_not_measured(subject, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(differences, "has_compiler", lambda: False)
    patient = make_subject(folder, tmp_path, may_compile=True)
    for compared in ("flex_attention : sdpa", "compiled : not"):
        each = find("logits", compared)
        assert measure(each, subject).note == "not measured: needs --compile"
        row = measure(each, patient)
        assert row.note == "not measured: no C++ compiler"
        assert row.largest is row.relative is row.equal_top1 is None
        assert row.cells()[3:] == ["", "", "", "not measured: no C++ compiler"]


def test_without_the_packages_of_the_export_graphs_are_not_measured(folder, tmp_path, monkeypatch):
    def refuse():
        raise ImportError("pip install onnx")

    monkeypatch.setattr(differences, "require_onnx", refuse)
    subject = make_subject(folder, tmp_path)
    for precision in ("fp32", "int8"):
        assert measure(find("logits", f"ONNX {precision} : torch"), subject).note == "not measured: pip install onnx"


def test_too_few_tokens_for_pieces_are_not_measured(subject, monkeypatch):
    monkeypatch.setattr(differences, "MLP_TOKENS", 10_000)
    row = measure(find("logits", "MLP at once (gradients) : in pieces"), subject)
    assert row.largest is None and "needs more clips" in row.note


# What is broken


def test_another_model_is_a_large_difference(subject):
    other = random_model(make_tiny_config())
    torch.nn.init.normal_(other.classifier.dense.weight, generator=torch.Generator().manual_seed(1))
    row = difference("logits", "", "logits", subject.expected, classify(other, subject.inputs))
    assert row.relative > 0.5 and row.equal_top1 < 1


def attend_with_another_scale(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    weights = (query @ key.transpose(2, 3) * scaling * 1.1).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def forget_mask(*args, **kwargs) -> None:
    """Padding is attended to."""


class ShortResampler(differences.StreamResampler):
    """That forgets what its next samples depend on."""

    def __init__(self, *rates):
        super().__init__(*rates)
        self.context = 0


@pytest.mark.parametrize(
    "group, compared, owner, attribute, broken",
    [
        ("logits", "eager : sdpa", network, "eager_attention_forward", attend_with_another_scale),
        ("logits", "own lengths in batches, padded and masked : alone", network.ASTModel, "_mask_tokens", forget_mask),
        ("features", "resampled in pieces : at once", differences, "StreamResampler", ShortResampler),
        ("features", "ours : torchaudio's", fbank_module, "PREEMPHASIS", 0.95),
    ],
    ids=["attention", "mask", "resampling", "features"],
)
def test_what_is_broken_shows(folder, tmp_path, monkeypatch, group, compared, owner, attribute, broken):
    monkeypatch.setattr(owner, attribute, broken)
    row = measure(find(group, compared), make_subject(folder, tmp_path))
    assert row.relative > 100 * BOUNDS[group][compared]


def test_one_other_weight_shows_beside_transformers_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["audio_spectrogram_transformer.encoder.layer.1.output.dense.bias"][3] += 0.1
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    compared = "Transformers' AST : ours, same epsilon"
    row = measure(find("logits", compared), make_subject(tmp_path / "model", tmp_path))
    assert row.relative > 100 * BOUNDS["logits"][compared]


def test_what_is_no_number_is_no_small_difference():
    row = difference("features", "", "samples", torch.arange(3.0), torch.tensor([0, 1, math.nan]))
    row.must_be_equal = True
    assert not row.is_as_promised
    assert row.cells()[3:] == ["nan", "nan", "", "must be 0"]
    with pytest.raises(ValueError, match="expected two tensors of one shape"):
        difference("features", "", "samples", torch.zeros(3), torch.zeros(4))


def test_a_difference_is_measured_by_the_spread():
    expected = torch.tensor([[1.0, 3.0], [5.0, 3.0], [0.0, 4.0]])
    found = expected + torch.tensor([[0.0, 0.0], [0.0, 2.5], [0.0, -0.5]])
    row = difference("logits", "", "logits", expected, found)
    assert row.largest == 2.5
    assert row.relative == pytest.approx(2.5 / expected.std().item())
    assert row.equal_top1 == pytest.approx(2 / 3)


# The script


def run(*argv) -> int:
    return script.main([str(argument) for argument in argv])


def test_the_table_and_the_file_hold_every_row(folder, tmp_path, monkeypatch, capsys):
    """On a model and recordings that are given."""
    generator, sounds = torch.Generator().manual_seed(0), tmp_path / "sounds" / "of all kinds"
    sounds.mkdir(parents=True)
    for number in range(3):
        soundfile.write(sounds / f"{number}.wav", torch.randn(12000, generator=generator).numpy() / 8, 22050)
    quick = [each for each in COMPARISONS if each.compared not in NEED_TIME]
    monkeypatch.setattr(script, "COMPARISONS", quick)
    options = ["--model", folder, "--audio", tmp_path / "sounds", "--output", tmp_path / "new" / "rows.json"]
    assert run("--groups", "features", "logits", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| group | compared | over | largest difference | of the spread | equal top-1 | remarks |"
    assert [line.split(" | ")[1] for line in lines[2 : 2 + len(quick)]] == [each.compared for each in quick]
    assert "processor" in lines[-1]
    report = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert [row["compared"] for row in report["rows"]] == [each.compared for each in quick]
    assert all(row["largest"] >= 0 and row["relative"] >= 0 for row in report["rows"])
    assert report["command"].startswith(
        "python tests/campaigns/measure_differences.py --groups features logits --model "
    )
    assert {"processor", "cores", "torch", "transformers"} <= report["machine"].keys()


def test_random_weights_do_not_hear_the_same_in_all_clips(tmp_path):
    args = script.parse_options(["--num_clips", "10"])
    subject = script.make_subject(args, tmp_path)
    assert subject.expected.std() == pytest.approx(differences.DEVIATION, rel=0.2)
    assert len(set(subject.expected.argmax(dim=1).tolist())) > 2
    again = script.make_subject(args, tmp_path)
    assert torch.equal(again.expected, subject.expected)


def test_exit_status_tells_of_what_differs_that_must_be_equal(folder, monkeypatch, capsys):
    def moved(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
        return subject.expected, subject.expected + 1e-6

    for must_be_equal in (True, False):
        monkeypatch.setattr(script, "COMPARISONS", [Comparison("logits", "x : y", "logits", moved, must_be_equal)])
        assert run("--groups", "logits", "--model", folder, "--num_clips", 2) == must_be_equal
        assert ("must be 0" in capsys.readouterr().out) == must_be_equal


@pytest.mark.parametrize(
    "options, message",
    [
        (["--num_clips", "1"], "Expected num_clips of at least 2, got 1"),
        (["--model", "nowhere"], "Expected model to be a folder, got nowhere"),
        (["--audio", "nowhere"], "Expected audio to be a folder, got nowhere"),
        (["--model", "empty"], "empty cannot be used: "),
        (["--audio", "empty"], "Expected recordings below empty, found none"),
    ],
)
def test_options_that_cannot_be_used_are_one_sentence(tmp_path, monkeypatch, options, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchmarkError, match=message):
        run("--groups", "features", *options)


# Training


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("each", TRAINING, ids=name)
def test_training_that_may_differ_does_so_by_no_more_than_it_should(runs, each):
    row = compare_runs(each, runs)
    assert_within_bounds(row)
    if each.must_be_equal:
        assert row.note == "losses of all updates equal" and row.equal_top1 == 1
    if each.compared == "another seed : the same":  # which shows that the others compare something
        assert row.relative > 100 * BOUNDS["training"]["2 processes : 1"]
    if each.compared == "2 accumulated batches : 1, with dropout":
        assert row.relative > BOUNDS["training"]["2 processes : 1"]


@pytest.mark.slow
def test_a_training_run_that_fails_is_told(runs):
    with pytest.raises(BenchmarkError, match="A training run failed .*no_such_key"):
        runs[Run(("--no_such_key=1",))]


def test_without_gloo_two_processes_are_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    runs = Runs(tmp_path)
    runs.done[PLAIN] = tmp_path
    row = compare_runs(next(each for each in TRAINING if each.found.processes == 2), runs)
    assert row.note == "not measured: torch comes without gloo" and row.largest is None
