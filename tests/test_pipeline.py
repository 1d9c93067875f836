"""One recording has one result: as Transformers' own pipeline gives it where it is short, as the model gives it window
by window where it is long; whatever it is held in, batched with, read by, and however it arrives.
"""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import make_tiny_config, random_model
from test_interchange import run_python
from test_recordings import FORMATS, RATE, noise, slices
from torchaudio.functional import resample
from transformers.pipelines.pt_utils import KeyDataset

from modeling_ast import ASTFeatureExtractor, AudioError
from modeling_ast.inference.embeddings import audio_embedder
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline, audio_tagger
from modeling_ast.inference.streaming import StreamTagger
from modeling_ast.loading import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
ID2LABEL = {0: "rain", 1: "dog", 2: "clock", 3: "sea", 4: "rooster"}
LABELS = list(ID2LABEL.values())
PROBLEM_TYPES = ["single_label_classification", "multi_label_classification", "regression", None]
# The longest clip of 64 frames, which is the model's length; and the shortest of 16, which is one patch.
LONGEST, SHORTEST = 64 * 160 + 400 - 1, 15 * 160 + 400


def make_extractor() -> ASTFeatureExtractor:
    return ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-5.0, std=4.0)


def save(folder: Path, **config) -> Path:
    random_model(make_tiny_config(id2label=ID2LABEL, **config)).save_pretrained(folder)
    make_extractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str | None, Path]:
    """A model of each problem type, with thresholds that belong to no label, so that they say nothing."""
    root = tmp_path_factory.mktemp("models")
    return {
        problem_type: save(root / str(problem_type), problem_type=problem_type, thresholds={"gone": 0.999})
        for problem_type in PROBLEM_TYPES
    }


@pytest.fixture(scope="module")
def classifier(folders) -> ASTAudioClassificationPipeline:
    return audio_tagger(folders["multi_label_classification"], top_k=None)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[Path]:
    """Of different lengths, from less than a patch to 30 windows."""
    root = tmp_path_factory.mktemp("recordings")
    paths = []
    for index, num_samples in enumerate((500, 11 * RATE, LONGEST, 3000, LONGEST + 1, 2 * RATE, 8000)):
        paths.append(root / f"{index}.wav")
        soundfile.write(paths[-1], swelling(num_samples, index), RATE, subtype="FLOAT")
    return paths


def swelling(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise that is loud and soft by turns, so that windows differ."""
    turns = np.sin(np.arange(num_samples) * (2 * np.pi / 9000)) ** 2
    return (noise(num_samples, seed=seed) * turns).astype(np.float32)


def by_label(tags: list[dict]) -> dict[str, float]:
    return {tag["label"]: tag["score"] for tag in tags}


def assert_same_tags(tags: list[dict], expected: list[dict]) -> None:
    """The same labels with the same scores, up to the rounding of a model whose weights lie elsewhere in memory."""
    assert by_label(tags) == pytest.approx(by_label(expected), abs=1e-5)


def assert_same(result: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """Results with timelines."""
    assert by_label(result["tags"]) == pytest.approx(by_label(expected["tags"]), abs=tolerance)
    np.testing.assert_array_equal(result["timeline"].boundaries, expected["timeline"].boundaries)
    np.testing.assert_allclose(result["timeline"].scores, expected["timeline"].scores, atol=tolerance)


@torch.no_grad()
def by_hand(model, waveform: np.ndarray, length: int = LONGEST, left: int | None = None, right: int | None = None):
    """Boundaries and sigmoid scores: each window alone through the extractor and the model, at its own length."""
    left, right = (length // 6 if side is None else side for side in (left, right))
    windows, boundaries = slices(len(waveform), length, left, right, SHORTEST)
    rows = []
    for start, stop in windows:
        padding = "max_length" if len(windows) == 1 and length == LONGEST else "longest"
        features = make_extractor()(waveform[start:stop], return_tensors="pt", padding=padding)
        rows.append(model(features["input_values"]).logits[0].sigmoid().numpy())
    return np.array(boundaries), np.stack(rows)


# Beside Transformers' own pipeline


@pytest.mark.parametrize("num_samples", [400, 1000, SHORTEST, 9000, 10480, 10500, LONGEST])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_a_short_recording_has_the_scores_of_the_stock_pipeline(folders, problem_type, num_samples):
    ours = audio_tagger(folders[problem_type])
    stock = transformers.pipeline("audio-classification", str(folders[problem_type]))
    waveform = noise(num_samples)
    result, expected = ours(waveform), stock(waveform)
    assert [tag["label"] for tag in result] == [tag["label"] for tag in expected]
    assert by_label(result) == pytest.approx(by_label(expected), abs=1e-5)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_each_function_gives_the_scores_of_the_stock_pipeline(folders, problem_type, function):
    ours, stock = (
        transformers.pipeline("audio-classification", str(folders[problem_type]), **options)
        for options in ({"pipeline_class": ASTAudioClassificationPipeline}, {})
    )
    options = {"function_to_apply": function, "top_k": 3}
    result, expected = ours(noise(9000), **options), stock(noise(9000), **options)
    assert len(result) == 3 and by_label(result) == pytest.approx(by_label(expected), abs=1e-5)


def test_a_regression_of_one_value_is_a_value(tmp_path):
    save_one = random_model(make_tiny_config(num_labels=1, problem_type="regression"))
    save_one.save_pretrained(tmp_path)
    make_extractor().save_pretrained(tmp_path)
    stock = transformers.pipeline("audio-classification", str(tmp_path))(noise(9000))
    assert by_label(audio_tagger(tmp_path)(noise(9000))) == pytest.approx(by_label(stock), abs=1e-5)


WITHOUT_PACKAGE = """
import json, sys
import numpy as np, torch
from transformers import pipeline

torch.set_num_threads(1)
waveform, scores = np.load(sys.argv[1]), []
for folder in sys.argv[2:]:
    tagger = pipeline("audio-classification", model=folder, top_k=None)
    scores.append({tag["label"]: tag["score"] for tag in tagger(waveform)})
print(json.dumps({"scores": scores, "loaded": "modeling_ast" in sys.modules}))
"""


@pytest.mark.slow
def test_the_stock_pipeline_gives_the_same_without_this_package(tmp_path):
    """With fitted thresholds in the folders, which stock keeps and does not use."""
    folders = [
        save(tmp_path / problem_type, problem_type=problem_type, thresholds={"rain": 0.9}, head_layer_norm_eps=None)
        for problem_type in ("single_label_classification", "multi_label_classification")
    ]
    waveform = noise(9000)
    np.save(tmp_path / "clip.npy", waveform)
    report = run_python(WITHOUT_PACKAGE, tmp_path / "elsewhere", tmp_path / "clip.npy", *folders)
    assert not report["loaded"]
    for folder, expected in zip(folders, report["scores"]):
        scores = by_label(audio_tagger(folder, top_k=None, threshold=0)(waveform))
        assert scores == pytest.approx(expected, abs=1e-5)


def test_a_folder_that_stock_wrote_is_heard_by_ours(tmp_path):
    config = {key: value for key, value in make_tiny_config().to_diff_dict().items() if key != "head_layer_norm_eps"}
    stock_model = random_model(transformers.ASTConfig(**config), transformers.ASTForAudioClassification)
    stock_model.save_pretrained(tmp_path)
    stock_extractor = transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    stock_extractor.save_pretrained(tmp_path)
    stock = transformers.AudioClassificationPipeline(model=stock_model, feature_extractor=stock_extractor)
    for options in ({}, {"feature_extractor": stock_extractor}):
        ours = audio_tagger(tmp_path, **options)
        assert by_label(ours(noise(9000))) == pytest.approx(by_label(stock(noise(9000))), abs=1e-5)
        assert len(ours(noise(3 * RATE), return_timeline=True)["timeline"].scores) > 3


def test_a_model_object_of_stock_is_refused_in_one_sentence():
    config = {key: value for key, value in make_tiny_config().to_diff_dict().items() if key != "head_layer_norm_eps"}
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(**config))
    with pytest.raises(TypeError, match="^Expected modeling_ast.ASTForAudioClassification, got transformers.models"):
        ASTAudioClassificationPipeline(model=model, feature_extractor=make_extractor())


@pytest.mark.parametrize("load", [audio_tagger, audio_embedder])
def test_a_model_that_is_nowhere_is_an_error(load, tmp_path):
    with pytest.raises(ModelError, match="nowhere cannot be used"):
        load(tmp_path / "nowhere")


def test_windows_of_what_is_no_recording_are_an_error(classifier):
    with pytest.raises(AudioError, match="^no_such.wav: no such file"):
        list(classifier.preprocess("no_such.wav"))


@pytest.mark.parametrize("load", [audio_tagger, audio_embedder])
def test_a_feature_extractor_of_other_mel_bins_is_refused_before_anything_is_read(tmp_path, load):
    save(tmp_path)
    ASTFeatureExtractor(max_length=64, num_mel_bins=64).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match="cannot be used: Expected a feature extractor with the model's 32 mel bins, got one with 64"
    ):
        load(tmp_path)


def test_a_model_that_comes_from_its_training_tags_without_dropout():
    model = random_model(make_tiny_config(hidden_dropout_prob=0.5)).train()
    tagger = ASTAudioClassificationPipeline(model=model, feature_extractor=make_extractor())
    assert_same_tags(tagger(noise(9000)), tagger(noise(9000)))


# Windows


@pytest.mark.parametrize("num_samples", [LONGEST, LONGEST + 1, 20000, 33333, 5 * RATE])
def test_each_window_has_the_scores_of_the_model_on_it_alone(classifier, num_samples):
    waveform = swelling(num_samples)
    boundaries, scores = by_hand(classifier.model, waveform)
    result = classifier(waveform, return_timeline=True, batch_size=4)
    np.testing.assert_array_equal(result["timeline"].boundaries, boundaries)
    np.testing.assert_allclose(result["timeline"].scores, scores, atol=1e-5)
    mean = np.average(scores, axis=0, weights=np.diff(boundaries))
    assert by_label(result["tags"]) == pytest.approx(dict(zip(LABELS, mean)), abs=1e-5)
    assert by_label(classifier(waveform, aggregate="max")) == pytest.approx(
        dict(zip(LABELS, scores.max(axis=0))), abs=1e-5
    )


@pytest.mark.parametrize(
    ("chunk", "stride", "samples"),
    [
        (0.5, None, (8000, 1333, 1333)),
        (0.5, 0.1, (8000, 1600, 1600)),
        (0.5, (0, 0.25), (8000, 0, 4000)),
        (0.5, [0.2, 0.0], (8000, 3200, 0)),
        (0.175, 0, (2800, 0, 0)),
        (1.5, 0.5, (24000, 8000, 8000)),
        (100.0, None, (1600000, 0, 0)),
    ],
)
def test_window_and_strides_are_in_seconds(classifier, chunk, stride, samples):
    waveform = swelling(33333)
    result = classifier(waveform, return_timeline=True, chunk_length_s=chunk, stride_length_s=stride)
    boundaries, scores = by_hand(classifier.model, waveform, *samples)
    np.testing.assert_array_equal(result["timeline"].boundaries, boundaries)
    np.testing.assert_allclose(result["timeline"].scores, scores, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "hop"), [(None, 0.1), (None, 0.6649375), (0.5, 0.5), (0.5, 0.0625), (0.333, 0.1), (1.5, 0.7)]
)
def test_a_hop_in_seconds_is_the_step_of_the_timeline(classifier, window, hop):
    keywords = classifier.window_keywords(window, hop)
    boundaries = classifier(swelling(2 * RATE), return_timeline=True, **keywords)["timeline"].boundaries
    assert (np.diff(boundaries)[1:-1] == round(hop * RATE)).all() and len(boundaries) > 2
    assert classifier.window_cutter(**keywords).length == (LONGEST if window is None else round(window * RATE))


@pytest.mark.parametrize(
    ("window", "hop"), [(0.1, None), (np.inf, None), (np.nan, None), (1, 1.01), (None, 0), (1, -1), (1, np.nan)]
)
def test_windows_and_hops_that_cannot_be_are_one_sentence(classifier, window, hop):
    with pytest.raises(ValueError, match="^Expected a (window of at least 0.175 s|hop above 0 and of at most)"):
        classifier.window_keywords(window, hop)


def test_the_last_partial_window_is_heard_at_its_own_length(classifier):
    """Padded to the model's length, as stock pads, it would have other scores."""
    waveform = swelling(LONGEST + 4000)
    row = classifier(waveform, return_timeline=True)["timeline"].scores[-1]
    padded = classifier(waveform, return_timeline=True, padding="max_length")["timeline"].scores[-1]
    hop = LONGEST - 2 * (LONGEST // 6)
    with torch.no_grad():
        alone = {
            padding: classifier.model(make_extractor()(waveform[hop:], None, "pt", None, padding, False).input_values)
            for padding in ("longest", "max_length")
        }
    np.testing.assert_allclose(row, alone["longest"].logits[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(padded, alone["max_length"].logits[0].sigmoid(), atol=1e-5)
    assert abs(row - padded).max() > 1e-3


def test_a_recording_that_fits_into_a_window_of_another_length_is_not_padded(classifier):
    waveform = noise(9000)
    with torch.no_grad():
        features = make_extractor()(waveform, return_tensors="pt", padding="longest").input_values
        expected = dict(zip(LABELS, classifier.model(features).logits[0].sigmoid().tolist()))
    for options in ({"chunk_length_s": 0.6}, {"chunk_length_s": 3}, {"padding": "longest"}):
        assert by_label(classifier(waveform, **options)) == pytest.approx(expected, abs=1e-5)
    assert by_label(classifier(waveform)) != pytest.approx(expected, abs=1e-3)


# One result, whatever the way


class Clips(torch.utils.data.Dataset):
    """Never ends by itself: who reads it has to ask for its length."""

    def __init__(self, sources: list):
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict:
        return {"audio": self.sources[index % len(self.sources)], "label": 0}


@pytest.fixture(scope="module")
def expected_results(classifier, recordings) -> list[dict]:
    """Each alone, at once."""
    waveforms = [soundfile.read(path, dtype="float32")[0] for path in recordings]
    return [classifier(waveform, return_timeline=True) for waveform in waveforms]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_results_depend_neither_on_the_batch_nor_on_who_reads(
    classifier, recordings, expected_results, batch_size, num_workers
):
    options = {"return_timeline": True, "batch_size": batch_size, "num_workers": num_workers}
    results = classifier(recordings, **options)
    assert len(results) == len(recordings)
    for result, expected in zip(results, expected_results):
        assert_same(result, expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "dataset", "iterable dataset"])
def test_several_recordings_come_in_any_container(classifier, recordings, expected_results, kind, num_workers):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(recordings)

    containers = {
        "list": list(recordings),
        "tuple": tuple(recordings),
        "generator": (path for path in recordings),
        "dataset": KeyDataset(Clips(recordings), "audio"),
        "iterable dataset": Stream(),
    }
    results = classifier(containers[kind], return_timeline=True, num_workers=num_workers)
    assert isinstance(results, list) == (kind in ("list", "tuple"))
    results = list(results)
    assert len(results) == len(recordings)
    for result, expected in zip(results, expected_results):
        assert_same(result, expected)


def test_processes_do_not_tear_what_a_generator_reads(classifier, recordings, tmp_path):
    """Processes that were forked share the position in an open file."""
    (tmp_path / "list.txt").write_text(f"{recordings[3]}\n" * 50)
    with open(tmp_path / "list.txt") as lines:
        results = list(classifier((line.strip() for line in lines), num_workers=2))
    assert len(results) == 50


def test_each_recording_of_a_data_set_is_loaded_by_one_process(classifier, tmp_path):
    class Counted(Clips):
        def __getitem__(self, index):
            (tmp_path / f"{index} {os.getpid()}").touch()
            return noise(3000)

    assert len(list(classifier(Counted([0] * 6), num_workers=2))) == 6
    assert len(list(tmp_path.iterdir())) == 6


def test_results_of_a_generator_come_as_soon_as_they_are_known(classifier):
    given = []

    def sources():
        for number in range(100):
            given.append(number)
            yield noise(3000)

    results = classifier(sources(), batch_size=2)
    next(results)
    assert len(given) < 10


@pytest.mark.parametrize("empty", [[], (), KeyDataset(Clips([]), "audio"), (path for path in ())])
def test_no_recordings_give_no_results(classifier, empty):
    assert list(classifier(empty)) == []


def test_every_holder_gives_the_same_result(classifier, recordings, expected_results):
    path, expected = recordings[1], expected_results[1]
    waveform = soundfile.read(path, dtype="float32")[0]
    decoded = SimpleNamespace(data=torch.from_numpy(waveform)[None], sample_rate=RATE)
    with open(path, "rb") as file:
        sources = [
            str(path),
            path,
            path.read_bytes(),
            io.BytesIO(path.read_bytes()),
            file,
            waveform.astype(np.float64),
            torch.from_numpy(waveform),
            torch.from_numpy(waveform).requires_grad_(),
            np.stack((waveform, waveform)),
            {"array": waveform, "sampling_rate": RATE},
            {"raw": waveform, "sampling_rate": RATE},
            {"bytes": path.read_bytes(), "path": None},
            {"path": str(path)},
            SimpleNamespace(get_all_samples=lambda: decoded),
        ]
        for source in sources:
            assert_same(classifier(source, return_timeline=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("file_rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_every_file_has_the_scores_of_its_waveform(tmp_path, classifier, name, subtype, file_rate, num_channels):
    """Over a block's end at 10 s."""
    sound = np.stack([swelling(11 * file_rate, seed) for seed in range(num_channels)], axis=1)
    soundfile.write(tmp_path / name, sound, file_rate, subtype=subtype)
    samples = torch.from_numpy(soundfile.read(tmp_path / name, dtype="float32", always_2d=True)[0].mean(axis=1))
    options = {"return_timeline": True, "chunk_length_s": 3.0, "batch_size": 8}
    assert_same(classifier(tmp_path / name, **options), classifier(resample(samples, file_rate, RATE), **options))


def stream(classifier, waveform: np.ndarray, seed: int = 0, largest: int = 6000, **options) -> tuple[list, dict]:
    """What the windows give as they come, and what the whole gives."""
    tagger, generator = StreamTagger(classifier, **options), np.random.default_rng(seed)
    rows, position = [], 0
    while position < len(waveform):
        size = int(generator.integers(0, largest))
        rows += tagger.push(waveform[position : position + size])
        position += size
    return rows, tagger.finish()


@pytest.mark.parametrize("largest", [30, 900, 50000])
@pytest.mark.parametrize("index", range(7))
def test_a_stream_has_the_result_of_the_file(classifier, recordings, expected_results, index, largest):
    waveform = soundfile.read(recordings[index], dtype="float32")[0][: 3 * RATE]
    expected = classifier(waveform, return_timeline=True)
    rows, result = stream(classifier, waveform, largest=largest, return_timeline=True)
    assert_same(result, expected)
    timeline = expected["timeline"]
    for row, start, stop, scores in zip(rows, timeline.boundaries, timeline.boundaries[1:-1], timeline.scores):
        assert row["timeline"].boundaries.tolist() == [start, stop]
        np.testing.assert_allclose(row["timeline"].scores[0], scores, atol=1e-5)
        assert by_label(row["tags"]) == pytest.approx(dict(zip(LABELS, scores)), abs=1e-5)
    assert len(rows) >= len(timeline.scores) - 1


@pytest.mark.parametrize("source_rate", [8000, 22050, 44100, 48000])
def test_a_stream_at_another_rate_has_the_result_of_the_file(tmp_path, classifier, source_rate):
    waveform = swelling(int(2.3 * source_rate))
    soundfile.write(tmp_path / "clip.wav", waveform, source_rate, subtype="FLOAT")
    options = {"return_timeline": True, "chunk_length_s": 0.5, "stride_length_s": (0.1, 0.05), "aggregate": "max"}
    _, result = stream(classifier, waveform, sampling_rate=source_rate, **options)
    assert_same(result, classifier(tmp_path / "clip.wav", **options))


def test_a_stream_of_integer_pcm_is_a_stream_of_its_floats(classifier):
    pcm = np.rint(swelling(20000) * 32767).astype(np.int16)
    floats = (pcm / 32768).astype(np.float32)
    options = {"return_timeline": True}
    assert_same(stream(classifier, pcm, **options)[1], stream(classifier, floats, **options)[1])


def test_a_stream_has_the_keywords_that_the_pipeline_was_made_with(folders):
    made = {"top_k": 2, "chunk_length_s": 0.3, "function_to_apply": "softmax", "padding": "max_length"}
    classifier = audio_tagger(folders["multi_label_classification"], **made)
    waveform = swelling(20000)
    rows, result = stream(classifier, waveform)
    assert by_label(result) == pytest.approx(by_label(classifier(waveform)), abs=1e-5) and len(result) == 2
    assert all(len(row["tags"]) == 2 for row in rows)
    _, overridden = stream(classifier, waveform, top_k=4, chunk_length_s=0.5)
    expected = classifier(waveform, top_k=4, chunk_length_s=0.5)
    assert by_label(overridden) == pytest.approx(by_label(expected), abs=1e-5) and len(overridden) == 4


# Keywords


def test_fitted_thresholds_choose_the_tags(tmp_path):
    folder = save(tmp_path, problem_type="multi_label_classification")
    free = audio_tagger(folder, top_k=None)
    waveform = swelling(30000)
    scores = by_label(free(waveform))
    second = sorted(scores, key=scores.get)[-2]
    thresholds = {label: 0.0 for label in LABELS} | {second: scores[second] + 1e-3, "gone": 0.5}
    free.model.config.thresholds = thresholds
    free.save_pretrained(folder)
    fitted = audio_tagger(folder, top_k=None)
    result = fitted(waveform, return_timeline=True)
    assert [tag["label"] for tag in result["tags"]] == [label for label in scores if label != second]
    assert result["timeline"].thresholds == {label: thresholds[label] for label in LABELS}
    # They are thresholds of these scores, however these are asked for, and of no others.
    assert_same_tags(fitted(waveform, function_to_apply="sigmoid"), result["tags"])
    other = fitted(waveform, function_to_apply="none", return_timeline=True)
    assert len(other["tags"]) == 5 and other["timeline"].thresholds == {}
    assert len(fitted(waveform, threshold=0)) == 5
    assert len(fitted(waveform, threshold={})) == 5


def test_fitted_thresholds_leave_the_best_label_of_a_softmax(tmp_path):
    folder = save(tmp_path, problem_type="single_label_classification", thresholds=dict.fromkeys(LABELS, 1.0))
    classifier, waveform = audio_tagger(folder), swelling(30000)
    result = classifier(waveform, return_timeline=True)
    assert_same_tags(result["tags"], classifier(waveform, top_k=1, threshold=0))
    assert result["timeline"].find_events() == []
    assert classifier(waveform, threshold=1.0) == []  # asked for by the user


def test_a_score_equal_to_its_threshold_is_kept():
    model = random_model(make_tiny_config(problem_type="multi_label_classification"))
    with torch.no_grad():
        model.classifier.dense.weight.zero_()  # scores of the biases alone, the same to the last bit at each call
    classifier = ASTAudioClassificationPipeline(model=model, feature_extractor=make_extractor(), top_k=None)
    scores = by_label(classifier(noise(9000)))
    assert len(set(scores.values())) == 5
    for label, score in scores.items():
        assert label in by_label(classifier(noise(9000), threshold=score))
        assert label not in by_label(classifier(noise(9000), threshold=np.nextafter(np.float32(score), np.float32(2))))
        assert by_label(classifier(noise(9000), threshold={label: 2.0})).keys() == scores.keys() - {label}


def test_keywords_of_a_call_win_and_do_not_stay(folders):
    made = {"top_k": 2, "threshold": 0.0, "function_to_apply": "none", "aggregate": "max", "chunk_length_s": 0.4}
    folder = folders["multi_label_classification"]
    tagger, plain = audio_tagger(folder, batch_size=2, **made), audio_tagger(folder)
    waveform = swelling(20000)
    at_first = tagger(waveform)
    assert_same_tags(at_first, plain(waveform, batch_size=2, **made))
    called = {"top_k": None, "threshold": None, "function_to_apply": None, "aggregate": "mean", "chunk_length_s": None}
    assert_same_tags(tagger(waveform, **called), plain(waveform, batch_size=2, top_k=None))
    assert len(tagger(waveform, top_k=1)) == 1
    assert_same_tags(tagger(waveform), at_first)


@pytest.mark.parametrize(("top_k", "number"), [(1, 1), (3, 3), (5, 5), (99, 5), (None, 5), (np.int64(2), 2)])
def test_top_k_is_a_number_of_labels_best_first(classifier, top_k, number):
    tags = classifier(swelling(30000), top_k=top_k)
    assert len(tags) == number
    assert [tag["score"] for tag in tags] == sorted((tag["score"] for tag in tags), reverse=True)


INVALID = [
    ("top_k", (0, -1, 1.5, "5", True)),
    ("function_to_apply", ("relu", 1, ["softmax"])),
    (
        "threshold",
        (np.nan, np.inf, "0.5", [0.5], True, {"cat": 0.5}, {"rain": "high"}, {"rain": np.nan}, {"rain": None}),
    ),
    ("chunk_length_s", (0, -1, np.nan, np.inf, "10", True, 0.1)),
    ("stride_length_s", (-0.1, np.nan, np.inf, "1", "ab", (0.1,), (0.1, 0.1, 0.1), (0.1, None), (-0.1, 0.1), 0.4, 50)),
    ("padding", ("shortest", True, 1)),
    ("aggregate", ("median", None, ["mean"])),
    ("return_timeline", ("yes", None, 2)),
    ("on_error", ("ignore", None)),
    ("batch_size", (0, -1, 1.5, "8", True)),
    ("num_workers", (-1, 0.5, "2")),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in INVALID for value in values],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_what_a_keyword_cannot_be_is_one_sentence_before_anything_is_read(classifier, name, value):
    def sources():
        yield "no_such.wav"

    words = "a threshold for labels" if name == "threshold" and "cat" in str(value) else name
    uses = [
        lambda: classifier("no_such.wav", **{"num_workers": 1, name: value}),
        lambda: classifier(sources(), **{name: value}),
        lambda: ASTAudioClassificationPipeline(
            model=classifier.model, feature_extractor=classifier.feature_extractor, **{name: value}
        ),
    ]
    if name not in ("on_error", "batch_size", "num_workers"):
        uses.append(lambda: StreamTagger(classifier, **{name: value}))
    for use in uses:
        with pytest.raises(ValueError, match=f"^Expected {words}") as caught:
            use()
        assert not isinstance(caught.value, AudioError) and "\n" not in str(caught.value)


def test_windows_that_padding_would_cut_are_refused(folders, classifier):
    """A window of 2 s, "padded" to the 0.66 s of the model, would lose two thirds of itself without a word."""
    made_with_padding = audio_tagger(folders["multi_label_classification"], padding="max_length")
    for use in (
        lambda: classifier(noise(30000), chunk_length_s=2, padding="max_length"),
        lambda: made_with_padding(noise(30000), chunk_length_s=2),
        lambda: StreamTagger(made_with_padding, chunk_length_s=2),
    ):
        with pytest.raises(ValueError, match="^Expected padding 'longest' or None for windows of 2 s"):
            use()
    assert made_with_padding(noise(30000), chunk_length_s=0.5)


@pytest.mark.parametrize(("name", "meant"), [("topk", "top_k"), ("chunk_length", "chunk_length_s"), ("xyz", None)])
def test_an_unknown_keyword_is_one_sentence(classifier, folders, name, meant):
    words = f"has no keyword '{name}'." + (f" Is '{meant}' meant" if meant else "$")
    for use in (
        lambda: classifier(noise(9000), **{name: 1}),
        lambda: audio_tagger(folders[None], **{name: 1}),
        lambda: StreamTagger(classifier, **{name: 1}),
    ):
        with pytest.raises(TypeError, match=words):
            use()
    with pytest.raises(TypeError, match="StreamTagger has no keyword 'on_error'"):
        StreamTagger(classifier, on_error="return")


def test_what_a_diverged_model_says_stays_in_sight(folders):
    tagger = audio_tagger(folders["multi_label_classification"])
    with torch.no_grad():
        tagger.model.classifier.dense.bias[1] = torch.nan
    assert np.isnan(by_label(tagger(noise(9000)))["dog"])


# What is no recording


def nan_at(position: int, value: float = np.nan) -> np.ndarray:
    waveform = swelling(30000)
    waveform[position] = value
    return waveform


BAD = [
    (np.zeros(0, np.float32), "<ndarray>: holds no samples"),
    (noise(399), "<ndarray>: Expected at least 400 samples .*25 ms.* got 399"),
    (nan_at(0), "<ndarray>: .*NaN or infinite"),
    (nan_at(29999), "<ndarray>: .*NaN or infinite"),
    (nan_at(15000, np.inf), "<ndarray>: .*NaN or infinite"),
    (nan_at(15000, 1e30), r"<ndarray>: Expected floats in \[-1, 1\], got up to 1e\+30"),
    (torch.zeros(30000, dtype=torch.int64), "<Tensor>: .*full scale is not known"),
    ({"path": "row 7", "array": noise(100), "sampling_rate": RATE}, "row 7: Expected at least 400 samples"),
    ("no_such.wav", "no_such.wav: no such file"),
    ("a" * 5000, "a: no such file"),
    (b"no sound", "<bytes>: cannot be decoded"),
    (None, "<NoneType>: Expected a path"),
]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("source", "words"), BAD, ids=range(len(BAD)))
def test_what_is_no_recording_is_one_error_with_one_sentence(classifier, source, words, num_workers):
    for sources, which in ((source, "^(a*)"), ([noise(3000), source], "^Recording 1, (a*)"))[num_workers:]:
        with pytest.raises(AudioError, match=which + words.removeprefix("a")) as caught:
            classifier(sources, num_workers=num_workers)
        assert type(caught.value) is AudioError and "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_an_error_takes_its_place_and_the_others_go_on(
    classifier, recordings, expected_results, batch_size, num_workers
):
    sources, expected = [], []
    for path, result, (bad, words) in zip(recordings, expected_results, BAD):
        sources += [bad, path]
        expected += [words, result]
    results = classifier(
        sources, on_error="return", return_timeline=True, batch_size=batch_size, num_workers=num_workers
    )
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected):
        if isinstance(wanted, dict):
            assert_same(result, wanted)
        else:
            assert list(result) == ["error"]
            assert re.search(f"^{wanted}", result["error"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_whose_end_is_missing_is_an_error_though_its_windows_were_heard(
    tmp_path, classifier, recordings, expected_results, num_workers
):
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise(25 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: int(0.9 * path.stat().st_size)])
    sources = [path, recordings[1], path, recordings[2]]
    options = {"num_workers": num_workers, "batch_size": 4, "return_timeline": True}
    results = classifier(sources, on_error="return", **options)
    for index in (0, 2):
        assert list(results[index]) == ["error"] and results[index]["error"].startswith(f"{path}: ")
    assert_same(results[1], expected_results[1])
    assert_same(results[3], expected_results[2])
    with pytest.raises(AudioError, match=f"^{path}: "):
        classifier(path, num_workers=num_workers)


def test_an_iterator_gives_what_comes_before_an_error(classifier):
    results = classifier((source for source in (noise(3000), noise(4000), "no_such.wav", noise(3000))), batch_size=8)
    assert len([next(results), next(results)]) == 2
    with pytest.raises(AudioError, match="^Recording 2, no_such.wav: no such file"):
        next(results)


def test_a_stream_refuses_what_is_no_sound_and_goes_on(classifier):
    waveform = swelling(20000)
    tagger = StreamTagger(classifier, return_timeline=True)
    for bad, words in (
        (np.zeros((2, 1000), np.float32), r"mono samples of shape \(samples,\), got shape \(2, 1000\)"),
        (np.zeros((3, 2), np.float32), r"got shape \(3, 2\)"),
        (np.full(20000, np.nan), "NaN or infinite"),
        (np.full(5, np.inf, np.float32), "NaN or infinite"),
        (np.zeros(100, np.int64), "full scale is not known"),
        (np.array(["a"]), "array of numbers"),
        ("clip.wav", "got str"),
        (b"\0\0", "got bytes"),
        ([0.1, 0.2], "got list"),
        (None, "got NoneType"),
    ):
        with pytest.raises(AudioError, match=f"^<stream>: .*{words}"):
            tagger.push(bad)
    tagger.push(waveform)
    assert_same(tagger.finish(), classifier(waveform, return_timeline=True))


def test_a_stream_ends_once(classifier):
    tagger = StreamTagger(classifier)
    tagger.push(swelling(20000))
    tagger.finish()
    for use in (tagger.finish, lambda: tagger.push(noise(100))):
        with pytest.raises(ValueError, match="This stream is finished"):
            use()


@pytest.mark.parametrize(("num_samples", "words"), [(0, "holds no samples"), (399, "at least 400 samples")])
def test_a_stream_without_sound_is_an_error(classifier, num_samples, words):
    tagger = StreamTagger(classifier)
    assert tagger.push(noise(num_samples)) == []
    with pytest.raises(AudioError, match=f"^<stream>: .*{words}"):
        tagger.finish()


@pytest.mark.parametrize("rate", [0, -1, "16000", 16000.5, True])
def test_a_rate_that_cannot_be_is_one_sentence(classifier, rate):
    with pytest.raises(ValueError, match="^Expected sampling_rate to be a whole number of Hz above 0"):
        StreamTagger(classifier, sampling_rate=rate)


# Where and in what precision


def test_half_precision_has_nearly_the_scores(folders, classifier):
    half = audio_tagger(folders["multi_label_classification"], dtype=torch.bfloat16, top_k=None)
    assert half.model.dtype == torch.bfloat16
    waveform = swelling(30000)
    result, expected = (tagger(waveform, return_timeline=True, batch_size=3) for tagger in (half, classifier))
    assert result["timeline"].scores.dtype == np.float32
    assert_same(result, expected, tolerance=0.03)


@pytest.mark.parametrize("device", ["cpu", -1, torch.device("cpu")])
def test_the_device_is_that_asked_for(folders, device):
    assert audio_tagger(folders[None], device=device).device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_gpu_has_the_scores_of_the_cpu(folders, classifier, recordings, expected_results, num_workers):
    tagger = audio_tagger(folders["multi_label_classification"], device=0, top_k=None)
    results = tagger(recordings, return_timeline=True, batch_size=8, num_workers=num_workers)
    for result, expected in zip(results, expected_results):
        assert_same(result, expected, tolerance=1e-4)
    assert_same(tagger(torch.from_numpy(swelling(30000)).cuda(), return_timeline=True),
                classifier(swelling(30000), return_timeline=True), tolerance=1e-4)  # fmt: skip


def test_the_pipeline_survives_pickling(classifier):
    waveform = swelling(30000)
    assert_same_tags(pickle.loads(pickle.dumps(classifier))(waveform), classifier(waveform))


SPAWN = """
import json, sys
import numpy as np, torch
from modeling_ast.inference.pipeline import audio_tagger

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.multiprocessing.set_start_method("spawn")
    tagger = audio_tagger(sys.argv[1], top_k=None)
    paths = (path for path in sys.argv[2:])
    print(json.dumps([tag[0]["score"] for tag in tagger(paths, num_workers=2)]))
"""


@pytest.mark.slow
def test_processes_that_start_afresh_give_the_same(tmp_path, folders, classifier, recordings, expected_results):
    """As on macOS and Windows, where everything that a process needs has to be pickled."""
    (tmp_path / "spawn.py").write_text(SPAWN)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, tmp_path / "spawn.py", folders["multi_label_classification"], *recordings]
    process = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    scores = json.loads(process.stdout.splitlines()[-1])
    assert scores == pytest.approx([result["tags"][0]["score"] for result in expected_results], abs=1e-5)


def test_two_threads_share_a_pipeline(classifier, recordings, expected_results):
    """As in a demo that several people use at once."""
    results = {}

    def tag(number: int) -> None:
        results[number] = classifier(recordings, return_timeline=True, batch_size=3)

    threads = [threading.Thread(target=tag, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results.values():
        for result, expected in zip(found, expected_results, strict=True):
            assert_same(result, expected)


# Long recordings


def write_long(path: Path, seconds: int, rate: int = RATE, num_channels: int = 1) -> Path:
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, num_channels, subtype="PCM_16") as file:
        for _ in range(seconds // 10):
            file.write((0.1 * generator.standard_normal((10 * rate, num_channels))).astype(np.float32))
    return path


PEAK_MEMORY = """
import json, sys
import torch
from modeling_ast.inference.pipeline import audio_tagger

torch.set_num_threads(1)
tagger = audio_tagger(sys.argv[1])
result = tagger(sys.argv[2], return_timeline=True, chunk_length_s=10, batch_size=4)
# Not `resource.getrusage`, whose peak a process inherits from the one that starts it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": result["timeline"].seconds, "peak_kib": peak}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("name", "rate", "num_channels"), [("long.wav", 16000, 1), ("long.flac", 44100, 2)])
def test_memory_is_flat_in_the_length_of_a_file(tmp_path, folders, capsys, name, rate, num_channels):
    """An hour as float32 at 16 kHz alone would be 230 MB."""
    peaks = {}
    for minutes in (5, 60):
        path = write_long(tmp_path / name, 60 * minutes, rate, num_channels)
        report = run_python(
            PEAK_MEMORY,
            tmp_path / str(minutes),
            folders[None],
            path,
            python_path=(Path(__file__).resolve().parents[1],),
        )
        path.unlink()
        assert report["seconds"] == 60 * minutes
        peaks[minutes] = report["peak_kib"] * 1024 / 1e6
    with capsys.disabled():
        print(f"\n{name}: peak memory {peaks[5]:.0f} MB for 5 minutes, {peaks[60]:.0f} MB for an hour")
    assert peaks[60] - peaks[5] < 60


@pytest.mark.slow
@pytest.mark.parametrize("way", ["array", "file", "stream"])
def test_time_is_linear_in_the_length(tmp_path, classifier, way):
    """Eight times the length takes eight times the time; anything quadratic would take up to 64 times.

    The best of three in turn counts, in processor time of one thread: a busy machine makes even that half as
    long again.
    """
    waveform = noise(600 * RATE)
    options = {"chunk_length_s": 0.5, "stride_length_s": 0.1}
    for seconds in (75, 600):
        soundfile.write(tmp_path / f"{seconds}.wav", waveform[: seconds * RATE], RATE)

    def tag(seconds: int) -> float:
        start = time.process_time()
        if way == "file":
            classifier(tmp_path / f"{seconds}.wav", batch_size=8, **options)
        elif way == "array":
            classifier(waveform[: seconds * RATE], batch_size=8, **options)
        else:
            tagger = StreamTagger(classifier, **options)
            for first in range(0, seconds * RATE, 4000):
                tagger.push(waveform[first : min(first + 4000, seconds * RATE)])
            tagger.finish()
        return time.process_time() - start

    short, long = np.min([(tag(75), tag(600)) for _ in range(3)], axis=0)
    assert long < 16 * short
