"""Pictures are drawn of what they are given, for few classes and for many."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.figure
import matplotlib.font_manager
import numpy as np
import pytest
import torch
from conftest import make_tiny_config
from helpers import write_csv
from matplotlib.text import Text

from modeling_ast import ASTFeatureExtractor, AudioError
from modeling_ast.data.intervals import Interval
from modeling_ast.data.metrics import average_precision, per_class_metrics
from modeling_ast.inference import lettering
from modeling_ast.inference.explanations import Attention, Occlusion, Spectrogram
from modeling_ast.inference.figures import may_fail
from modeling_ast.inference.lettering import drawable
from modeling_ast.inference.plots import plot_attention, plot_occlusion, plot_tags, plot_timeline
from modeling_ast.inference.result_plots import (
    plot_confusion_matrix,
    plot_per_class,
    plot_reliability,
    plot_training_curves,
)
from modeling_ast.inference.timeline import Event, Timeline


@pytest.fixture
def figures(monkeypatch) -> list:
    """Every figure that is drawn, to be looked into."""
    drawn, savefig = [], matplotlib.figure.Figure.savefig

    def keep(figure, path, **settings):
        drawn.append(figure)
        savefig(figure, path, **settings)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return drawn


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def problem(num_labels: int, num_clips: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities, class indices and label names."""
    generator = np.random.default_rng(0)
    labels = np.arange(num_clips) % num_labels
    probabilities = generator.random((num_clips, num_labels))
    probabilities[np.arange(num_clips), labels] += 0.5
    return probabilities / 1.5, labels, [f"sound {index}" for index in range(num_labels)]


# Training curves


def epochs(**columns: list) -> list[dict]:
    count = len(next(iter(columns.values())))
    return [
        {"epoch": index + 1, **{name: values[index] for name, values in columns.items()}} for index in range(count)
    ]


def curves(figure) -> dict[str, list[list]]:
    """By the title of the panel: the points of each line."""
    return {axes.get_title(): [line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes}


def test_training_curves_show_losses_metric_and_rate(tmp_path, figures):
    rows = epochs(
        learning_rate=[1e-4, 5e-5], train_loss=[2, 1], validation_loss=[3, 2], accuracy=[0.5, 0.7], mAP=[0.1, 0.2],
        cum_accuracy=[0.5, 0.8],
    )  # fmt: skip
    plot_training_curves(write_csv(tmp_path / "results.csv", rows), tmp_path / "curves.png")
    assert is_picture(tmp_path / "curves.png")
    assert curves(figures[0]) == {
        "loss": [[[1, 2], [2, 1]], [[1, 3], [2, 2]]],
        "accuracy": [[[1, 0.5], [2, 0.7]], [[1, 0.5], [2, 0.8]]],
        "learning rate": [[[1, 1e-4], [2, 5e-5]]],
    }


def test_training_curves_bear_gaps_and_missing_columns(tmp_path, figures):
    """As in a run that goes on, and where d' was infinite."""
    rows = epochs(train_loss=[2, 1, ""], accuracy=["", "", ""], mAP=[0.1, "", 0.3], d_prime=["", 2.0, ""])
    path = write_csv(tmp_path / "results.csv", rows)
    plot_training_curves(path, tmp_path / "curves.png")
    assert curves(figures[0]) == {"loss": [[[1, 2], [2, 1]]], "mAP": [[[1, 0.1], [3, 0.3]]], "learning rate": []}
    plot_training_curves(write_csv(path, epochs(train_loss=[2, 1])), tmp_path / "curves.png")  # no validation
    assert curves(figures[1]) == {"loss": [[[1, 2], [2, 1]]], "mAP": [], "learning rate": []}


# Classes


def bars(axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def names(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_few_classes_are_all_shown_best_first(tmp_path, figures):
    probabilities, labels, label_names = problem(10, 50)
    labels[labels == 3] = 4  # class 3 has no clip
    plot_per_class(per_class_metrics(probabilities, labels, label_names), tmp_path / "classes.png")
    assert is_picture(tmp_path / "classes.png")
    (axes,) = figures[0].axes
    expected = average_precision(probabilities, labels)
    order = [index for index in np.argsort(-expected, kind="stable") if index != 3]
    assert bars(axes) == expected[order].tolist()
    assert names(axes) == [f"sound {index} ({10 if index == 4 else 5})" for index in order]
    assert figures[0].get_suptitle() == f"mAP {np.nanmean(expected):.4f}"
    rows = per_class_metrics(probabilities, labels, label_names)
    plot_per_class(rows, tmp_path / "classes.png", Interval(0.25, 0.75))
    assert figures[1].get_suptitle().endswith(" (0.2500 to 0.7500)")


@pytest.mark.slow
def test_of_many_classes_the_best_and_the_worst_are_named(tmp_path, figures):
    probabilities, labels, label_names = problem(61, 122)
    plot_per_class(per_class_metrics(probabilities, labels, label_names), tmp_path / "classes.png")
    curve, best, worst = figures[0].axes
    expected = -np.sort(-average_precision(probabilities, labels))
    assert curve.lines[0].get_ydata().tolist() == expected.tolist()
    assert (bars(best), bars(worst)) == (expected[:25].tolist(), expected[-25:].tolist())
    assert len(names(best)) == len(names(worst)) == 25


def test_classes_without_any_positive_are_no_picture(tmp_path):
    rows = [{"label": "rain", "AP": None, "AUC": None, "positives": 0}]
    with pytest.raises(ValueError, match="Expected a class with an average precision to draw, got none"):
        plot_per_class(rows, tmp_path / "classes.png")


# Confusion matrix


@pytest.mark.parametrize("num_labels, one_hot", [(10, False), (10, True), (50, False)])
def test_confusion_matrix_counts_labels_in_rows_and_predictions_in_columns(tmp_path, figures, num_labels, one_hot):
    probabilities, labels, label_names = problem(num_labels, 3 * num_labels)
    given = np.eye(num_labels)[labels] if one_hot else labels
    plot_confusion_matrix(probabilities, given, label_names, tmp_path / "confusion.png")
    assert is_picture(tmp_path / "confusion.png")
    counts = np.zeros((num_labels, num_labels), dtype=int)
    for label, predicted in zip(labels, probabilities.argmax(axis=1)):
        counts[label, predicted] += 1
    axes = figures[0].axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), counts / 3)
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text()) for text in axes.texts}
    assert written == {tuple(cell): counts[tuple(cell)] for cell in np.argwhere(counts).tolist()}
    assert names(axes) == label_names and axes.get_ylabel() == "label"


@pytest.mark.slow
def test_confusion_matrix_of_many_classes_has_no_names(tmp_path, figures):
    probabilities, labels, label_names = problem(120, 120)
    plot_confusion_matrix(probabilities, labels, label_names, tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert "sound 0" not in names(axes) and not axes.texts


def test_confusion_matrix_refuses_several_labels_and_other_names(tmp_path):
    probabilities, labels, label_names = problem(4, 8)
    with pytest.raises(ValueError, match="Expected exactly one label a clip for a confusion matrix"):
        plot_confusion_matrix(probabilities, np.ones((8, 4)), label_names, tmp_path / "confusion.png")
    with pytest.raises(ValueError, match="Expected 4 label names, as many as columns, got 3"):
        plot_confusion_matrix(probabilities, labels, label_names[:3], tmp_path / "confusion.png")


# Explanations


@pytest.fixture
def spectrogram() -> Spectrogram:
    """48 frames, from one minute on, of 32 mel bins."""
    generator = torch.Generator().manual_seed(0)
    times = 60.0125 + 0.01 * torch.arange(48, dtype=torch.float64)
    return Spectrogram(torch.randn(48, 32, generator=generator), times, 50.0 * 1.15 ** torch.arange(32), 0.01)


def test_occlusion_is_drawn_over_the_spectrogram_with_0_in_the_middle_of_the_colours(tmp_path, figures, spectrogram):
    drop = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    drop[10, 20] = -9.0
    plot_occlusion(Occlusion(spectrogram, "a $label", 2.0, drop), tmp_path / "seen.png", title="clip.wav")
    assert is_picture(tmp_path / "seen.png") and [path.name for path in tmp_path.iterdir()] == ["seen.png"]
    above, below = figures[0].axes[:2]
    for image in (above.images[0], below.images[0]):
        np.testing.assert_array_equal(image.get_array(), spectrogram.log_mel.T)
    shown = below.images[1]
    np.testing.assert_array_equal(shown.get_array(), drop.T)
    assert shown.get_clim() == (-9.0, 9.0) and shown.origin == "lower"
    assert shown.get_extent() == pytest.approx([60.0075, 60.4875, 0, 32]) == below.images[0].get_extent()
    lowest, middle, highest = shown.to_rgba(np.array([-9.0, 0.0, 9.0]))
    assert lowest[2] > lowest[0] and highest[0] > highest[2] and middle[3] < 0.01 < lowest[3] == highest[3]
    assert below.get_title() == "a $label (score 0.881): red speaks for it, blue against it"


def test_occlusion_by_a_model_that_ignores_its_input_can_be_drawn(tmp_path, figures, spectrogram):
    plot_occlusion(Occlusion(spectrogram, "label", 0.0, torch.zeros(48, 32)), tmp_path / "seen.png")
    assert (figures[0].axes[1].images[1].to_rgba(np.zeros(1))[:, 3] < 0.01).all()


def test_frequencies_in_kilohertz_stand_beside_their_mel_bins(tmp_path, figures, spectrogram):
    plot_occlusion(Occlusion(spectrogram, "label", 0.0, torch.ones(48, 32)), tmp_path / "seen.png")
    right = figures[0].axes[0].child_axes[0]
    for tick, label in zip(right.get_yticks(), right.get_yticklabels(), strict=True):
        below, above = spectrogram.frequencies[int(tick - 0.5)], spectrogram.frequencies[int(tick - 0.5) + 1]
        assert below <= 1000 * float(label.get_text()) <= above
    assert [label.get_text() for label in right.get_yticklabels()] == ["0.1", "0.25", "0.5", "1", "2"]


def test_attention_is_drawn_of_one_layer_and_of_its_heads(tmp_path, figures, spectrogram):
    weights = torch.rand(2, 4, 2, 2, 5, generator=torch.Generator().manual_seed(1)) / 10
    attention = Attention(spectrogram, weights, num_frames=64, config=make_tiny_config())
    plot_attention(attention, tmp_path / "mean.png", layer=0)
    plot_attention(attention, tmp_path / "heads.png", with_heads=True)
    assert is_picture(tmp_path / "mean.png") and is_picture(tmp_path / "heads.png")
    assert [len(figure.axes) for figure in figures] == [2, 6]  # with a colour bar
    mean, heads = figures[0].axes[0], figures[1].axes[2:]
    np.testing.assert_array_equal(mean.images[1].get_array().filled(np.nan), attention.over_cells(0).T)
    assert mean.images[1].get_extent() == pytest.approx([60.0075, 60.6475, 0, 32])  # with the padding, behind a line
    assert mean.lines[0].get_xdata() == pytest.approx([60.4875, 60.4875])
    share = weights[0].mean(dim=(0, 1)).sum().item()
    assert mean.get_title().startswith("layer 0, mean of the heads") and f"on patches {share:.0%};" in mean.get_title()
    for head, axes in enumerate(heads):
        np.testing.assert_array_equal(axes.images[1].get_array().filled(np.nan), attention.over_cells(1, head).T)
        assert axes.get_title().startswith(f"head {head};")
    with pytest.raises(ValueError, match="Expected layer from 0 to 1, or from -2 to -1, got 2"):
        plot_attention(attention, tmp_path / "none.png", layer=2)


# Timelines


def draw_timeline(path: Path, scores: np.ndarray, events=(), seconds: float = 3.0, pieces=None, title: str = ""):
    """Of rows of the same length."""
    if pieces is None:
        pieces = [0.1 * torch.randn(round(16000 * seconds), generator=torch.Generator().manual_seed(0))]
    timeline = Timeline(
        boundaries=np.linspace(0, 16000 * seconds, len(scores) + 1).astype(np.int64),
        scores=scores.astype(np.float32),
        label_names=[f"sound {index}" for index in range(scores.shape[1])],
        sampling_rate=16000,
    )
    plot_timeline(pieces, ASTFeatureExtractor(num_mel_bins=32), timeline, events, path, title)
    return timeline


def test_timeline_shows_spectrogram_scores_and_events(tmp_path, figures):
    waveform = 0.1 * torch.randn(48000, generator=torch.Generator().manual_seed(0))
    scores = np.random.default_rng(0).random((6, 2))
    events = [Event("sound 1", 0.5, 1.0, 0.9), Event("sound 1", 2.0, 3.0, 0.8), Event("sound 0", 0.0, 1.5, 0.7)]
    pieces = waveform.split([100, 0, 20000, 300, 27600])
    draw_timeline(tmp_path / "timeline.png", scores, events, pieces=pieces, title="a $x$\nb")
    assert is_picture(tmp_path / "timeline.png")
    above, below, *_ = figures[0].axes
    expected = ASTFeatureExtractor(num_mel_bins=32).fbank([waveform])[0].T
    np.testing.assert_allclose(above.images[0].get_array(), expected, atol=1e-4)
    assert above.get_title() == "a $x$ b" and below.get_xlim() == (0, 3)
    order = np.argsort(-scores.max(axis=0))
    assert names(below) == [f"sound {index}" for index in order]
    heat, *bars = below.collections
    np.testing.assert_allclose(heat.get_array(), scores[:, order].T, atol=1e-6)
    drawn = {
        (f"sound {order[int(box.y0 + 0.5)]}", box.x0, box.x1)
        for bar in bars
        for box in (path.get_extents() for path in bar.get_paths())
    }
    assert drawn == {(event.label, event.start, event.end) for event in events}


def test_timeline_shows_the_labels_that_matter(tmp_path, figures):
    """Of 30; those with events before those with high scores."""
    scores = np.tile(np.linspace(0, 0.9, 30), (3, 1))
    draw_timeline(tmp_path / "timeline.png", scores, [Event("sound 2", 0.0, 1.0, 0.06)])
    assert names(figures[0].axes[1]) == ["sound 2", *(f"sound {index}" for index in range(29, 20, -1))]


def test_long_timelines_are_pooled_by_mean_energy_and_highest_score(tmp_path, figures):
    waveform = 0.1 * torch.randn(24 * 16000 + 240, generator=torch.Generator().manual_seed(0))
    scores = np.zeros((3000, 1))
    scores[1234] = 0.9
    draw_timeline(tmp_path / "timeline.png", scores, seconds=len(waveform) / 16000, pieces=[waveform])
    above, below, *_ = figures[0].axes
    frames = ASTFeatureExtractor(num_mel_bins=32).fbank([waveform])[0].exp().numpy()  # (2400, 32): two a column
    np.testing.assert_allclose(
        above.images[0].get_array(), np.log(frames.reshape(1200, 2, 32).mean(axis=1)).T, atol=1e-4
    )
    heat = np.asarray(below.collections[0].get_array()).ravel()
    assert len(heat) == 1200 and heat[1234 * 1200 // 3000] == pytest.approx(0.9) and np.count_nonzero(heat) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(100, "time (s)"), (130, "time (min:s)"), pytest.param(3700, "time (h:min:s)", marks=pytest.mark.slow)],
)
def test_time_is_marked_in_units_that_fit(tmp_path, figures, seconds, words):
    timeline = Timeline(np.array([0, 1000 * seconds]), np.full((1, 1), 0.5), ["sound"], sampling_rate=1000)
    extractor = ASTFeatureExtractor(sampling_rate=1000, num_mel_bins=4)
    plot_timeline([torch.zeros(1000 * seconds)], extractor, timeline, [], tmp_path / "timeline.png")
    below = figures[0].axes[1]
    assert below.get_xlabel() == words
    marks = [label.get_text() for label in below.get_xticklabels()]
    assert {100: "20", 130: "1:00", 3700: "1:00:00"}[seconds] in marks and len(marks) <= 15


def test_a_picture_of_what_is_no_clip_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected at least 400 samples"):
        plot_tags(torch.zeros(399), ASTFeatureExtractor(), [], tmp_path / "tags.png")
    assert not list(tmp_path.iterdir())


def test_a_clip_is_drawn_with_its_labels_its_tags_and_kilohertz(tmp_path, figures):
    tags = [{"label": "rain", "score": 0.6}, {"label": "wind", "score": 0.3}]
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    plot_tags(waveform, ASTFeatureExtractor(), tags, tmp_path / "tags.png", "clip.wav", ["wind"], ["rain", "wind"])
    left, right = figures[0].axes[0], figures[0].axes[1]
    assert figures[0].get_suptitle() == "clip.wav\nlabel: wind" and left.get_ylabel() == "mel bin"
    (kilohertz,) = left.child_axes
    assert kilohertz.get_ylabel() == "kHz" and "4" in [label.get_text() for label in kilohertz.get_yticklabels()]
    assert bars(right) == [0.6, 0.3] and names(right) == ["rain", "wind"]
    wrong, right_one = (bar.get_facecolor() for bar in right.patches)
    assert wrong[0] > wrong[2] and right_one[2] > right_one[0]  # red and blue


# Names


PICTURES = ("tags", "confusion", "timeline", "curves", "classes", "reliability", "occlusion", "attention")
TITLED = ("tags", "timeline", "occlusion", "attention")


def draw(folder: Path, kinds: Iterable[str], label_names: list[str], title: str) -> None:
    """Pictures of some kinds, of five labels."""
    probabilities, labels, _ = problem(5, 10)
    clip, extractor = 0.1 * torch.randn(8000), ASTFeatureExtractor(num_mel_bins=32)
    timeline = Timeline(np.array([0, 4000, 8000]), probabilities[:2].astype(np.float32), label_names, 16000)
    events = [Event(label_names[0], 0, 0.2, 0.9)]
    tags = [{"label": name, "score": 0.5} for name in label_names]
    map_ = Spectrogram(torch.randn(48, 32), 0.01 * torch.arange(48), 50.0 * 1.15 ** torch.arange(32), 0.01)
    attention = Attention(map_, torch.rand(1, 2, 2, 2, 4) / 10, num_frames=48, config=make_tiny_config())
    line = np.array([0.1, 0.9])
    results = write_csv(folder / "results.csv", epochs(train_loss=[2, 1], mAP=[0.1, 0.2], cum_mAP=[0.1, 0.2]))
    rows = per_class_metrics(probabilities, labels, label_names)
    ways = {
        "tags": lambda path: plot_tags(clip, extractor, tags, path, title, label_names[:2], label_names),
        "confusion": lambda path: plot_confusion_matrix(probabilities, labels, label_names, path),
        "timeline": lambda path: plot_timeline([clip], extractor, timeline, events, path, title),
        "curves": lambda path: plot_training_curves(results, path),
        "classes": lambda path: plot_per_class(rows, path),
        "reliability": lambda path: plot_reliability({each: (line, line, 1000 * line) for each in label_names}, path),
        "occlusion": lambda path: plot_occlusion(Occlusion(map_, label_names[0], 0.5, map_.log_mel), path, title),
        "attention": lambda path: plot_attention(attention, path, title=title),
    }
    with no_warning():
        for kind in kinds:
            ways[kind](folder / f"{kind}.png")


@contextmanager
def no_warning() -> Iterator[None]:
    """matplotlib warns of characters that a font lacks, and of labels that leave no room."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.fixture
def few_fonts(monkeypatch):
    """Those that come with matplotlib, whatever is installed."""
    own = str(Path(matplotlib.get_data_path()))
    fonts = [(family, path) for family, path in lettering._fonts() if path.startswith(own)]
    lettering._family.cache_clear()
    monkeypatch.setattr(lettering, "_fonts", lambda: fonts)
    monkeypatch.setattr(lettering, "_WARNED", set())
    yield
    lettering._family.cache_clear()


@pytest.mark.parametrize("kinds", [PICTURES[:2], pytest.param(PICTURES, marks=pytest.mark.slow)])
def test_no_picture_takes_a_name_for_mathematics(tmp_path, figures, kinds):
    """As prices, shell variables and formulas have it; most of these are faulty formulas."""
    label_names = ["US$$ one $1^", "$HOME and ${HOME}", "$\\frac{1}$", "a_b^c $x$", "\\$5"]
    draw(tmp_path, kinds, label_names, title="$1^ and $_{.wav")
    drawn = dict(zip(kinds, figures, strict=True))
    for kind, figure in drawn.items():
        # Numbers of ticks that the layout adds are texts too, without a dollar.
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())
        assert kind not in TITLED or any("$1^ and $_{.wav" in text for text in texts(figure))
    confusion = drawn["confusion"].axes[0]
    assert names(confusion) == [label.get_text() for label in confusion.get_xticklabels()] == label_names
    if "reliability" in drawn:
        assert [text.get_text() for text in drawn["reliability"].axes[0].get_legend().get_texts()] == label_names
        counts = {label.get_text() for label in drawn["reliability"].axes[1].get_yticklabels()}
        assert counts >= {"100", "1,000"}  # no powers, which are mathematics


@pytest.mark.parametrize("kinds", [PICTURES[:2], pytest.param(PICTURES, marks=pytest.mark.slow)])
def test_names_that_no_font_has_are_numbers_and_said_once(tmp_path, figures, few_fonts, caplog, kinds):
    label_names = ["\u72d7", "rain", "\U0001f436 bark", "\u0e01", "\u041f\u0440\u0438\u0432\u0435\u0442"]
    draw(tmp_path, kinds, label_names, title="\u732b.wav")
    drawn = dict(zip(kinds, figures, strict=True))
    shown = ["label 0", "rain", "label 2", "label 3", label_names[4]]
    assert names(drawn["confusion"].axes[0]) == names(drawn["tags"].axes[1]) == shown
    assert drawn["tags"].get_suptitle() == "\\u732b.wav\nlabel: label 0, rain"
    if "timeline" in drawn:
        assert set(names(drawn["timeline"].axes[1])) == set(shown)
        assert {name.partition(" (")[0] for name in names(drawn["classes"].axes[0])} == set(shown)
    (record,) = caplog.records
    assert "No installed font has" in record.getMessage() and "id2label" in record.getMessage()


def test_names_are_drawn_in_a_font_that_has_them(tmp_path, figures, few_fonts):
    """One that the usual font lacks, and another that comes with matplotlib has; and one written from the right."""
    label_names = ["\u1d81 sound", "rain", "\u0645\u0637\u0631", "c", "d"]
    draw(tmp_path, ["confusion"], label_names, title="\u1d81")
    assert names(figures[0].axes[0]) == label_names
    families = {label.get_text(): label.get_fontfamily() for label in figures[0].axes[0].get_yticklabels()}
    assert families[label_names[0]][-1] == "STIXGeneral" and "STIXGeneral" not in families[label_names[2]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\tc\r\nd", "a b c d"),
        ("red \x1b[31m\x00", "red \\x1b[31m\\x00"),
        ("x\u202egnp.wav", "xgnp.wav"),  # turns what follows round, so that it looks like another name
        ("a\u200db\ufe0f", "ab"),
        ("\udcff.wav", "\\udcff.wav"),
        ("", ""),
        (400 * "n", 19 * "n" + "…" + 19 * "n"),
    ],
)
def test_names_of_all_kinds_are_one_line_that_can_be_drawn(text, expected, few_fonts):
    assert drawable(text, 40).replace("\u200d", "").replace("\ufe0f", "") == expected


@pytest.mark.parametrize("kinds", [PICTURES[1:2], pytest.param(PICTURES, marks=pytest.mark.slow)])
def test_names_of_all_kinds_do_not_break_a_picture(tmp_path, kinds):
    draw(tmp_path, kinds, [400 * "w", "a\nb\x00", "\u202e", " ", ""], title=10_000 * "long ")


def test_a_picture_that_fails_is_one_sentence_and_no_end(tmp_path, caplog):
    with may_fail(tmp_path / "a.png"):
        raise ValueError("Expected end of text,\n found '$'")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a.png'} cannot be drawn (Expected end of text, found '$'); all else goes on."
    ]
    for error in (AudioError, KeyboardInterrupt):  # a recording that is gone, and who stops the run
        with pytest.raises(error), may_fail("a.png"):
            raise error
