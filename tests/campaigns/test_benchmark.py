"""The benchmark compares like with like, says what it could not measure, and notices what became slower."""

import argparse
import json
import logging
import sys

import benchmark
import comparison
import measuring
import on_gpu
import pytest
import soundfile
import torch
import training_steps
from conftest import make_tiny_config, random_model
from measuring import BenchmarkError, Row
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.audio_spectrogram_transformer import ASTConfig as StockConfig
from transformers.models.audio_spectrogram_transformer import ASTForAudioClassification as StockModel

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.synthetic import CLASSES, generate_clip

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

SMALL = ["--size", "tiny224", "--max_length", "128", "--rounds", "1", "--num_threads", "1", "--num_files", "2"]
SMALL += ["--num_eval_clips", "40", "--batch_sizes", "1", "--dtypes", "fp32", "--train_batch_size", "1"]


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(measuring, "MIN_SECONDS", 1e-9)  # one call a turn


def run(tmp_path, *sections, options=()) -> list[dict]:
    arguments = [*SMALL, "--output_dir", str(tmp_path / "out"), "--sections", *sections, *map(str, options)]
    levels = [logging.getLogger(name).level for name in ("transformers", "modeling_ast", "torch.onnx")]
    assert benchmark.main(arguments) == 0
    assert levels == [logging.getLogger(name).level for name in ("transformers", "modeling_ast", "torch.onnx")]
    return json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]


def make_sounds(folder, classes, clips_a_class: int = 2):
    generator = torch.Generator().manual_seed(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(clips_a_class):
            soundfile.write(folder / name / f"{number}.wav", generate_clip(name, generator).numpy(), 16000)
    return folder


# Sections


@pytest.mark.parametrize(
    "section", ["features", "short_clips", "folder", "data", pytest.param("metrics", marks=pytest.mark.slow)]
)
def test_a_section_measures_both_sides(tmp_path, section):
    measured = [row for row in run(tmp_path, section) if not row["note"].startswith("not measured")]
    assert measured and all(row["section"] == section for row in measured)
    for row in measured:
        assert min(row["ours"], row["stock"]) > 0 or row["unit"] == "MB"
        if row["unit"] == "s":
            assert row["ratio"] == pytest.approx(row["stock"] / row["ours"])
    assert any(row["share"] is not None and row["share"] > 0 for row in measured)


@pytest.mark.parametrize("has_compiler", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_inference_is_measured_with_and_without_a_compiler(tmp_path, monkeypatch, has_compiler):
    if not has_compiler:
        monkeypatch.setattr(comparison, "has_compiler", lambda: False)
    elif not comparison.has_compiler():
        pytest.skip("needs a C++ compiler")
    plain, compiled = run(tmp_path, "inference")
    assert plain["ratio"] > 0 and plain["share"] > 0 and (plain["goal"], plain["share_goal"]) == (1.15, 0.85)
    assert compiled["work"] == f"{plain['work']}, compiled"
    assert compiled["ratio"] > 0 if has_compiler else compiled["note"] == "not measured: no C++ compiler"


def test_bf16_is_compared_with_stock_in_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "has_compiler", lambda: False)
    plain, _ = run(tmp_path, "inference", options=["--dtypes", "bf16"])
    assert "bf16" in plain["work"] and plain["ratio"] > 0 and plain["goal"] == 1.3


@pytest.mark.slow
def test_int8_is_measured_and_its_answers_compared(tmp_path):
    pytest.importorskip("onnxscript")
    sounds = make_sounds(tmp_path / "sounds", CLASSES[:2])
    save_trained(tmp_path / "model", CLASSES[:2])
    rows = run(tmp_path, "int8", options=["--audio", sounds, "--model", tmp_path / "model"])
    assert [row["goal"] for row in rows] == [None, 3.0, 0.98]
    assert all(row["ratio"] > 0 for row in rows[:2])
    assert 0.5 <= rows[2]["ours"] <= 1 and rows[2]["note"] == "4 clips"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_training_is_measured_in_time_and_memory(tmp_path):
    step, patchout, memory = run(tmp_path, "training")
    assert step["ratio"] > 0 and step["share"] > 0
    assert patchout["stock"] == step["ours"] and patchout["goal"] == 2.7  # ours without
    assert memory["unit"] == "MB" and min(memory["ours"], memory["stock"]) > 4 * 4 * 5.5  # with gradients and moments


def test_without_the_packages_of_the_export_its_section_says_so(tmp_path, monkeypatch):
    def refuse():
        raise ImportError("pip install onnx")

    monkeypatch.setattr(comparison, "require_onnx", refuse)
    (row,) = run(tmp_path, "int8")
    assert row["note"] == "not measured: pip install onnx"


@pytest.mark.slow
def test_starting_is_measured_in_fresh_processes(tmp_path):
    (row,) = run(tmp_path, "startup")
    assert row["ours"] > 0.5 and row["stock"] > 0.5 and 0 < row["share"] < 1.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_section_says_so(tmp_path):
    (row,) = run(tmp_path, "gpu")
    assert row["note"] == "not measured: no CUDA device" and row["ratio"] is None


@pytest.mark.slow
def test_the_gpu_section_runs_on_any_device(tmp_path, monkeypatch):
    args = argparse.Namespace(size="tiny224", max_length=128, rounds=1, num_files=2)
    config = ASTConfig.from_size("tiny224", max_length=128, num_hidden_layers=1, head_layer_norm_eps=None)
    random_model(config).save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=128).save_pretrained(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = list(on_gpu.on_device(args, tmp_path, torch.device("cpu"), torch.float32, 2, num_packed_clips=8))
    work = " ".join(row.work for row in rows)
    assert "inference" in work and "training step" in work and "ours, compiled" in work and "patchout" in work
    assert all(row.ratio > 0 for row in rows if row.stock is not None)
    by_work = {row.work.split(",")[0]: row for row in rows}
    assert by_work["features in fp32"].ours == by_work["logits in fp32"].ours == 0  # of a CPU from a CPU
    assert 1 <= by_work["graphs of 6 lengths"].ours <= 2
    assert by_work["whole training from shards of WAV"].ours > 0
    epoch = next(row for row in rows if row.unit == "h")
    step = next(row for row in rows if row.work.startswith("training step"))
    assert epoch.ours == pytest.approx(1_953_082 / step.ours / 3600)
    assert epoch.ratio == pytest.approx(step.ratio)


def save_trained(folder, labels) -> ASTForAudioClassification:
    id2label = dict(enumerate(labels))
    config = make_tiny_config(num_mel_bins=128, max_length=128, id2label=id2label)
    config.label2id = {label: index for index, label in id2label.items()}
    model = random_model(config)
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=128).save_pretrained(folder)
    return model


def test_accuracy_is_that_of_labelled_recordings(tmp_path):
    sounds = make_sounds(tmp_path / "sounds", CLASSES[:2])
    model = save_trained(tmp_path / "model", CLASSES[:2])
    _, accuracy = run(tmp_path, "short_clips", options=["--audio", sounds, "--model", tmp_path / "model"])
    extractor = ASTFeatureExtractor(max_length=128)
    right = {"longest": 0, "max_length": 0}
    for path in sounds.glob("*/*.wav"):
        for padding in right:
            inputs = extractor(soundfile.read(path)[0], padding=padding, return_tensors="pt")
            with torch.no_grad():
                answer = model(input_values=inputs["input_values"]).logits.argmax().item()
            right[padding] += model.config.id2label[answer] == path.parent.name
    assert (accuracy["ours"], accuracy["stock"]) == (right["longest"] / 4, right["max_length"] / 4)


def test_accuracy_leaves_out_the_training_clips_of_speech_commands(tmp_path):
    sounds = make_sounds(tmp_path / "sounds", CLASSES[:2])
    (sounds / "testing_list.txt").write_text(f"{CLASSES[1]}/1.wav\n")
    clips = comparison.labelled_clips(sounds, {CLASSES[0]: 0, CLASSES[1]: 1}, 10)
    assert clips == [(str(sounds / CLASSES[1] / "1.wav"), 1)]


def test_without_a_trained_model_accuracy_is_said_to_be_missing(tmp_path):
    assert run(tmp_path, "short_clips")[1]["note"] == "not measured: needs --model and --audio"


# Like with like


def test_other_features_are_an_error(tmp_path, monkeypatch):
    plain = ASTFeatureExtractor.normalize
    monkeypatch.setattr(ASTFeatureExtractor, "normalize", lambda self, x: 1.001 * plain(self, x))
    with pytest.raises(BenchmarkError, match="Expected ours to give what stock gives.*Nothing was timed"):
        benchmark.main([*SMALL, "--output_dir", str(tmp_path), "--sections", "features"])
    assert not (tmp_path / "benchmark.json").exists()


@pytest.mark.parametrize("section", ["inference", "training"])
def test_another_network_is_an_error(tmp_path, monkeypatch, section):
    monkeypatch.setattr(comparison, "has_compiler", lambda: False)
    forward = ASTForAudioClassification.forward

    def changed(self, input_values, **options):
        return forward(self, 1.1 * input_values, **options)

    monkeypatch.setattr(ASTForAudioClassification, "forward", changed)
    with pytest.raises(BenchmarkError, match="ours"):
        benchmark.main([*SMALL, "--output_dir", str(tmp_path), "--sections", section])


@pytest.mark.parametrize(
    "output", [torch.tensor([1.0, 2.2]), torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0, 3.0])]
)
def test_disagreement_is_an_error(output):
    with pytest.raises(BenchmarkError, match="Expected ours"):
        measuring.check_agreement({"ours": output, "stock": torch.tensor([1.0, 2.0])}, "stock", 0.05)


def test_each_of_several_outputs_has_to_agree():
    stock = (torch.tensor(6.0), torch.tensor([0.01, 0.02]))
    measuring.check_agreement({"ours": stock, "stock": stock}, "stock", 1e-6)
    with pytest.raises(BenchmarkError, match="difference of 0.5"):  # small beside the first, and not beside its own
        measuring.check_agreement({"ours": (stock[0], torch.tensor([0.01, 0.03])), "stock": stock}, "stock", 0.1)


def test_nothing_is_timed_before_the_check():
    calls = []

    def refuse(outputs):
        calls.append(dict(outputs))
        raise BenchmarkError("no")

    with pytest.raises(BenchmarkError):
        measuring.time_in_turn({"one": lambda: calls.append(1) or 1, "two": lambda: calls.append(2) or 2}, 3, refuse)
    assert calls == [1, 2, {"one": 1, "two": 2}]


def test_sides_take_turns_forwards_and_backwards():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = measuring.time_in_turn(sides, 2)
    assert "".join(calls) == "abc" + "abc" + "cba"
    assert seconds.keys() == sides.keys()


# Limits


def test_operations_are_those_of_stock():
    """261 GFLOP: what profilers report of a clip of 10 s."""
    config = StockConfig(num_labels=527)
    assert measuring.count_operations(StockModel, config) == pytest.approx(261.03e9, rel=1e-4)
    assert measuring.count_operations(StockModel, config, backward=True) == pytest.approx(3 * 261.03e9, rel=1e-2)


def test_products_are_counted_as_they_are_computed():
    products = measuring.LayerProducts(make_tiny_config(), 12, torch.float32)
    with FlopCounterMode(display=False) as counter:
        products()
    assert counter.get_total_flops() == products.operations


def allocate(megabytes: int) -> float:
    before = measuring.resident_bytes()
    assert torch.ones(3 * megabytes * 250_000).sum() > 0  # and free again
    measuring.forget_peak()
    assert torch.ones(megabytes * 250_000).sum() > 0
    return (measuring.resident_bytes(peak=True) - before) / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_peak_memory_is_that_of_the_new_process_alone():
    own = torch.ones(100_000_000)  # 400 MB, of this process
    assert measuring.in_new_process(allocate, 200) == pytest.approx(200, abs=40)
    assert len(own)


# The table, and what is compared with it


def doctor(tmp_path, factor: float):
    path = tmp_path / "out" / "benchmark.json"
    table = json.loads(path.read_text())
    for row in table["rows"]:
        if row["stock"] is not None:
            row["stock"] = factor * row["stock"]
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize(("factor", "status"), [(0.01, 0), (100.0, 1)])
def test_check_fails_where_a_ratio_fell(tmp_path, capsys, factor, status):
    run(tmp_path, "features")
    path = doctor(tmp_path, factor)
    before = path.read_text()
    assert benchmark.main(["--check", str(path), "--output_dir", str(tmp_path / "other")]) == status
    printed = capsys.readouterr().out
    assert ("fell: features: one 10 s clip, one thread" in printed) == bool(status)
    assert path.read_text() == before and not (tmp_path / "other").exists()


def test_a_fall_of_more_than_is_allowed_is_told_and_no_other():
    earlier = [Row("s", work, ours=1.0, stock=2.0) for work in ("slower", "a little slower", "faster", "gone")]
    now = [Row("s", work, ours=1.0, stock=stock) for work, stock in zip(("slower", "a little slower"), (1.6, 1.8))]
    now += [Row("s", "faster", ours=1.0, stock=3.0), Row("s", "gone", note="not measured: no compiler")]
    fallen, missing = measuring.fallen_rows(now, earlier, 0.15)
    assert fallen == ["s: slower: 1.60 now, 2.00 in the table"]
    assert missing == ["s: gone: no ratio now (not measured: no compiler)"]


def test_check_without_anything_to_compare_is_an_error(tmp_path):
    run(tmp_path, "features")
    path = tmp_path / "out" / "benchmark.json"
    with pytest.raises(BenchmarkError, match="Expected ratios to compare"):
        benchmark.main(["--check", str(path), "--sections", "gpu"])


def test_the_table_tells_goals_machine_and_command(tmp_path):
    rows = run(tmp_path, "features")
    table = (tmp_path / "out" / "benchmark.md").read_text()
    lines = table.splitlines()
    width = lines[0].count("|")
    assert all(line.count("|") == width for line in lines[: 2 + len(rows)])
    assert "2.50 ×" in table and f"torch {torch.__version__.split('+')[0]}" in table
    assert "python tests/campaigns/benchmark.py --size tiny224" in table and "1 threads" in table
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert report["machine"]["processor"] and report["settings"]["size"] == "tiny224"


@pytest.mark.parametrize(
    ("row", "is_reached"),
    [
        (Row("s", "w", 1.0, 2.0, goal=2.0), True),
        (Row("s", "w", 1.0, 2.0, goal=2.1), False),
        (Row("s", "w", 1.0, 2.0, goal=2.0, share=0.5, share_goal=0.6), False),
        (Row("s", "w", 0.99, unit="%", goal=0.98), True),
        (Row("s", "w", 100.0, 50.0, unit="clips/s", goal=2.0), True),
        (Row("s", "w", 100.0, 90.0, unit="MB", goal=1.0), False),
        (Row("s", "w", goal=2.0, note="not measured"), None),
        (Row("s", "w", 0.0, 1.0, unit="MB", goal=1.0), None),
    ],
)
def test_a_goal_is_reached_or_not(row, is_reached):
    assert row.is_reached is is_reached
    assert row.cells()[7] == {True: "yes", False: "no", None: ""}[is_reached]


@pytest.mark.parametrize(
    "options",
    [
        ["--rounds", "0"],
        ["--batch_sizes", "4", "0"],
        ["--max_length", "64"],
        ["--audio", "/no/such/folder"],
        ["--check", "/no/such/table.json"],
    ],
)
def test_unusable_options_are_one_sentence(options):
    with pytest.raises(BenchmarkError, match="^Expected .* got "):
        benchmark.main(options)


def test_patchout_is_that_of_passt():
    assert training_steps.patchout_keys(ASTConfig()) == {"patchout_rows": 4, "patchout_columns": 40}
    assert training_steps.patchout_keys(make_tiny_config()) == {}


def test_without_recordings_or_rounds_nothing_is_measured(tmp_path):
    with pytest.raises(BenchmarkError, match=f"Expected recordings below {tmp_path}, found none"):
        comparison.spread(tmp_path, 3)
    with pytest.raises(ValueError, match="Expected at least 1 round, got 0"):
        measuring.time_in_turn({"ours": list}, 0)


def test_memory_that_no_proc_tells_is_an_error(monkeypatch):
    """As on other systems than Linux, where there is no such folder."""
    elsewhere = lambda path, *args, **options: open(path.replace("/proc/", "/no_proc/"), *args, **options)  # noqa: E731
    monkeypatch.setattr(measuring, "open", elsewhere, raising=False)
    for read in (measuring.resident_bytes, measuring.forget_peak):
        with pytest.raises(OSError, match="No such file or directory"):
            read()
