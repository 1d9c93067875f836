"""Recordings spliced from known clips, how events in them are counted, and the scripts around both."""

import itertools
import math

import numpy as np
import pytest
import soundfile
import torch
from annotated_recordings import main as annotated_recordings
from conftest import make_tiny_config, random_model
from energy_gate import best_energy_gate, energy_gate, event_scores
from evaluate_events import main as evaluate_events
from prepare_events import main as prepare_events
from splicing import background_noise, frame_levels, set_level, sounding_part, splice

from modeling_ast import ASTFeatureExtractor, AudioError, load_waveform
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.sources import load_splits
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.inference.scoring import match_events
from modeling_ast.inference.timeline import Event
from modeling_ast.loading import ModelError
from modeling_ast.training.arguments import parse_arguments

RATE = 16000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def burst(seconds: float, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(round(seconds * RATE), generator=generator(seed))


def silence(seconds: float) -> torch.Tensor:
    return torch.zeros(round(seconds * RATE))


def decibels(waveform: torch.Tensor) -> float:
    return 10 * math.log10(waveform.double().square().mean())


# Splicing


@pytest.mark.parametrize("pause", [0.1, 0.4])
def test_the_sounding_part_is_cut_out_of_silence_and_keeps_short_pauses(pause):
    sound = torch.cat((burst(0.5), silence(pause), burst(0.7, seed=1)))
    part = sounding_part(torch.cat((silence(1.0), sound, silence(2.0))), RATE)
    assert abs(len(part) - len(sound)) < 0.06 * RATE  # a frame of 25 ms and a shift at either end


def test_the_longest_of_several_sounds_is_the_event():
    part = sounding_part(torch.cat((burst(0.3), silence(1.0), burst(0.9), silence(1.5), burst(0.4))), RATE)
    assert abs(len(part) / RATE - 0.9) < 0.06


def test_a_steady_sound_is_kept_whole():
    assert len(sounding_part(burst(2.0), RATE)) >= 2 * RATE - 160 - 400


def test_levels_are_those_of_full_scale():
    sine = torch.sin(2 * math.pi * 1000 * torch.arange(RATE) / RATE)
    torch.testing.assert_close(frame_levels(sine, RATE), torch.full((98,), 10 * math.log10(0.5)), atol=0.05, rtol=0)
    assert frame_levels(silence(0.1), RATE).max() == -120


def test_a_level_is_set_without_clipping():
    assert decibels(set_level(burst(1.0), -25)) == pytest.approx(-25, abs=0.01)
    click = torch.zeros(RATE)
    click[100] = 0.01
    assert set_level(click, -10).abs().max() == pytest.approx(1.0)


def test_background_is_steady_and_varies_in_colour_and_level():
    noises = [background_noise(2 * RATE, generator(seed)) for seed in range(20)]
    levels = [decibels(noise) for noise in noises]
    assert -61 < min(levels) < -45 and -35 < max(levels) < -24
    tilts = []
    for noise in noises:
        power = torch.fft.rfft(noise).abs().square()
        low, high = power[500:1000].mean(), power[8000:16000].mean()  # 250 to 500 Hz, and four octaves higher
        tilts.append(10 * (low / high).log10().item() / 4.5)
    assert -1 < min(tilts) < 3 and 6 < max(tilts) < 11  # dB an octave


def test_a_spliced_recording_tells_what_is_in_it_and_when():
    sounds = [(burst(0.5), "a"), (burst(1.0, seed=1), "b"), (burst(2.0, seed=2), "a")]
    recording, events = splice(sounds, RATE, generator())
    assert [label for label, *_ in events] == ["a", "b", "a"]
    assert [stop - start for _, start, stop in events] == [len(sound) for sound, _ in sounds]
    edges = [0, *itertools.chain(*((start, stop) for _, start, stop in events)), len(recording)]
    assert all(1.5 * RATE <= stop - start <= 4 * RATE + 1 for start, stop in zip(edges[::2], edges[1::2]))
    for (_, start, stop), (sound, _) in zip(events, sounds):
        assert -36 < decibels(recording[start:stop]) < -14
        inner = slice(400, -400)  # without the fades
        alike = torch.corrcoef(torch.stack((recording[start:stop][inner], sound[inner])))[0, 1]
        assert alike > 0.99
    assert decibels(recording[: events[0][1]]) == pytest.approx(-70, abs=1)  # silence before the first, noise after
    assert decibels(recording[events[0][2] : events[1][1]]) > -62


def test_the_same_seed_gives_the_same_recording():
    first, second = (splice([(burst(0.5), "a")], RATE, generator(3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]


# Counting


def events(*triples) -> list[Event]:
    return [Event(label, start, end, 1.0) for label, start, end in triples]


def brute_force_pairs(truth, found, min_overlap, labels_must_agree) -> float:
    """The largest sum of overlaps of any pairing, by trying all."""

    def overlap(one, other):
        if labels_must_agree and one.label != other.label:
            return 0.0
        both = max(0.0, min(one.end, other.end) - max(one.start, other.start))
        share = both / (one.end - one.start + other.end - other.start - both)
        return share if share >= min_overlap else 0.0

    padded = [*range(len(found)), *([None] * len(truth))]
    return max(
        sum(overlap(truth[i], found[j]) for i, j in enumerate(order) if j is not None)
        for order in set(itertools.permutations(padded, len(truth)))
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("labels_must_agree", [True, False])
def test_events_are_paired_as_well_as_they_can_be(seed, labels_must_agree):
    draw = np.random.default_rng(seed)

    def some(count):
        starts = draw.uniform(0, 10, count)
        return events(*((draw.choice(["a", "b"]), start, start + draw.uniform(0.5, 4)) for start in starts))

    truth, found = some(4), some(4)
    pairs = match_events(truth, found, 0.3, labels_must_agree)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    total = sum(brute_force_pairs([truth[i]], [found[j]], 0.3, labels_must_agree) for i, j in pairs)
    assert total == pytest.approx(brute_force_pairs(truth, found, 0.3, labels_must_agree))


def test_scores_of_events_are_counted_by_hand():
    truth = events(("a", 1, 2), ("b", 3, 5), ("a", 7, 8))
    found = events(("a", 1.1, 2.1), ("a", 3, 5), ("b", 9, 10), ("a", 7.3, 8))
    scores = event_scores(truth, found)
    assert scores == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "onset_error": 0.2})
    assert event_scores(truth, found, labels_must_agree=False)["recall"] == 1
    nothing = event_scores(truth, [])
    assert (nothing["precision"], nothing["recall"], nothing["f1"]) == (0, 0, 0)
    assert math.isnan(nothing["onset_error"])
    with pytest.raises(ValueError, match="at least one true event"):
        event_scores([], found)
    with pytest.raises(ValueError, match="at least one true event"):
        best_energy_gate(torch.zeros(RATE), RATE, [], [-40])


def test_an_energy_gate_finds_what_is_loud_and_cannot_tell_it_from_noise():
    waveform = torch.cat((silence(1.0), burst(0.5), silence(0.2), burst(0.5), silence(1.0), burst(0.05)))
    gate = energy_gate(waveform, RATE, -40, min_seconds=0.2, merge_seconds=0.3)
    assert [(e.start, e.end) for e in gate] == [(pytest.approx(1.0, abs=0.03), pytest.approx(2.2, abs=0.03))]
    assert len(energy_gate(waveform, RATE, -40)) == 3
    level, best = best_energy_gate(waveform, RATE, events(("x", 1.0, 2.2)), (-130, -40, 0), merge_seconds=0.3)
    assert level == -40 and len(best) == 2


# Scripts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips with folds, of two kinds of sounds padded with silence, and what prepare_events makes of them."""
    folder = tmp_path_factory.mktemp("events")
    rows = ["audio,label,fold"]
    for number, kind in enumerate(("drone", "whistle") * 4):
        clip = torch.cat((generate_clip(kind, generator(number))[6400:], silence(1.0)))
        soundfile.write(folder / f"{number}.wav", clip.numpy(), RATE)
        rows.append(f"{number}.wav,{kind},{number // 4 + 1}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    arguments = ["--clips_dir", folder / "cut", "--output", folder / "events.csv", "--num_background", "6"]
    prepare_events([str(word) for word in [folder / "clips.csv", *arguments]])
    return folder


def test_prepared_events_are_cut_and_background_is_spread_over_the_folds(data):
    splits = load_splits(str(data / "events.csv"), fold_column_name="fold", eval_fold=1)
    assert splits.label_names == ["background", "drone", "whistle"]
    for rows in (splits.train, splits.validation):
        assert sorted(rows["labels"]).count(0) == 3 and len(rows) == 7
    for row in splits.train:
        waveform = load_waveform(row["audio"]["path"])
        is_background = row["labels"] == 0
        assert len(waveform) == 4 * RATE if is_background else 0.3 * RATE < len(waveform) < 0.75 * RATE
        assert decibels(waveform) < -24 if is_background else decibels(waveform) == pytest.approx(-25, abs=0.5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"file,name\na.wav,b\n", "expected the columns audio and label, got file, name"),
        (b"audio,label\n", "holds no rows"),
        (b"", "expected the columns audio and label, got an empty file"),
        (b"audio,label\na.wav,dog\n\nb.wav\n", "line 4: expected 2 columns, got 1"),
        (b"audio,label\na.wav,dog,1\n", "line 2: expected 2 columns, got 3"),
        (b"audio,label\na.wav,\x81\n", "line 2: not UTF-8 nor cp1252"),
        (b'audio,label\na.wav,"dog\n', "line 2: not CSV"),
        (None, "cannot be read .No such file"),
    ],
)
def test_prepare_events_refuses_a_manifest_that_is_none(tmp_path, content, words):
    if content is not None:
        (tmp_path / "clips.csv").write_bytes(content)
    arguments = ["--clips_dir", str(tmp_path / "cut"), "--output", str(tmp_path / "events.csv")]
    with pytest.raises(DataError, match=f"clips.csv.*{words}"):
        prepare_events([str(tmp_path / "clips.csv"), *arguments])
    assert not (tmp_path / "cut").exists()


def test_prepare_events_names_a_clip_that_cannot_be_decoded(tmp_path):
    (tmp_path / "clips.csv").write_text("audio,label\na.wav,dog\n")
    (tmp_path / "a.wav").write_text("no sound")
    arguments = ["--clips_dir", str(tmp_path / "cut"), "--output", str(tmp_path / "events.csv")]
    with pytest.raises(AudioError, match="a.wav: cannot be decoded"):
        prepare_events([str(tmp_path / "clips.csv"), *arguments])
    assert not (tmp_path / "events.csv").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    random_model(make_tiny_config(id2label={0: "background", 1: "drone", 2: "whistle"})).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)
    return folder


def recipe(data) -> list[str]:
    lines = ["output_dir: unused", f"dataset_name: {data / 'events.csv'}", "fold_column_name: fold", "eval_fold: 1"]
    (data / "recipe.yaml").write_text("\n".join(lines) + "\n")
    return ["--recipe", str(data / "recipe.yaml")]


def test_the_script_compares_a_model_with_the_gate_and_saves_what_it_heard(data, model, tmp_path, capsys):
    results = evaluate_events([str(model), *recipe(data), "--output_dir", str(tmp_path), "--hop", "0.2"])
    assert [name.split(",")[-1].strip() for name in results] == ["with the right label", "any sound", "any sound"]
    assert all(0 <= scores[key] <= 1 for scores in results.values() for key in ("precision", "recall", "f1"))
    truth = [line.split("\t") for line in (tmp_path / "true_events.txt").read_text().splitlines()]
    assert sorted(label for *_, label in truth) == ["drone", "drone", "whistle", "whistle"]
    recording = load_waveform(tmp_path / "recording.flac")
    for start, end, _ in truth:
        assert decibels(recording[int(float(start) * RATE) : int(float(end) * RATE)]) > -37
    names = {"recording.flac", "found_events.txt", "gate_events.txt", "event_results.json", "timeline.png"}
    assert names < {path.name for path in tmp_path.iterdir()}
    assert "| energy gate at" in capsys.readouterr().out


def test_the_script_refuses_what_cannot_work(data, model, tmp_path):
    with pytest.raises(RecipeError, match="a hop above 0 and of at most the window, 1 s, got 2 s"):
        evaluate_events([str(model), *recipe(data), "--hop", "2"])
    with pytest.raises(RecipeError, match="Expected num_clips of at least 1, got 0"):
        evaluate_events([str(model), *recipe(data), "--num_clips", "0"])
    with pytest.raises(ModelError, match="nowhere cannot be used"):
        evaluate_events([str(tmp_path / "nowhere"), *recipe(data)])
    config = make_tiny_config(id2label={0: "background", 1: "drone", 2: "bell"})
    random_model(config).save_pretrained(tmp_path / "other")
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeError, match="the model alone has bell and the data alone have whistle"):
        evaluate_events([str(tmp_path / "other"), *recipe(data)])


def test_spliced_recordings_are_annotated_and_train_by_their_stretches(data, tmp_path, capsys):
    rows = ["audio,label,fold"]
    rows += [
        f"{data / f'{number % 8}.wav'},{('drone', 'whistle')[number % 2]},{number % 5 + 1}" for number in range(40)
    ]
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    commands = annotated_recordings([str(tmp_path / "clips.csv"), str(tmp_path / "out")])
    assert [words[0] for words in commands] == ["train", "tag", "score", "calibrate"]
    assert [len(list((tmp_path / "out" / part).glob("*.flac"))) for part in ("train", "choose", "report")] == [2, 1, 1]
    splits = load_splits(str(tmp_path / "out" / "train"), multi_label=True, window_seconds=0.5, background="keep")
    quiet = [row for _, part in splits for row in part if not row["labels"]]
    assert len(quiet) > 20 and "minutes are annotated" in capsys.readouterr().out
    arguments = parse_arguments([str(tmp_path / "out" / "recipe.yaml")])
    assert arguments.data.window_seconds == 1.0 and arguments.training.class_balanced_sampling
    (tmp_path / "clips.csv").write_text("audio,label\na.wav,dog\n")
    with pytest.raises(DataError, match="expected a column fold, got audio, label"):
        annotated_recordings([str(tmp_path / "clips.csv"), str(tmp_path / "out")])
