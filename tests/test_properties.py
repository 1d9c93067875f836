"""Properties of the public API over configurations and inputs that hypothesis draws, the same ones in every run.

Each property is two tests: a few examples, and many more under the marker `slow`.
"""

import csv
import functools
import io
import itertools
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
import torch
import transformers
from accelerate.data_loader import BatchSamplerShard
from conftest import make_tiny_config, random_model
from helpers import prepare
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch.utils.data import BatchSampler

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    load_imagenet_checkpoint,
    load_original_checkpoint,
    load_waveform,
)
from modeling_ast.audio import read_blocks
from modeling_ast.data import metrics
from modeling_ast.fbank import ENERGY_FLOOR, fbank
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline
from modeling_ast.inference.recordings import read_recording
from modeling_ast.inference.streaming import StreamTagger
from modeling_ast.inference.timeline import Timeline, audacity_labels
from modeling_ast.inference.windows import WindowCutter
from modeling_ast.modeling_ast import GEOMETRY_KEYS, adapt_position_embeddings
from modeling_ast.resampling import StreamResampler
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.augment import (
    clip_generator,
    draw_crop,
    draw_mask,
    draw_mixing_weight,
    draw_noise,
    draw_shift,
    mix,
    roll,
)
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.sampling import TrainingSampler

pytestmark = pytest.mark.usefixtures("one_thread")

FLOOR = math.log(ENERGY_FLOOR)
RATES = st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000])
SEEDS = st.integers(0, 2**32 - 1)
# What UTF-8 can hold: anything but half characters, which the configuration refuses.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", " ", " rain ", "rain\n", "a\tb", "\u2028", "\0", "\\", '"', "a,b", "LABEL_0", "0", "e\u0301", "\U0001d11e"]
)


def holds_for(few: int, many: int, **drawn: st.SearchStrategy) -> Callable:
    """Make of a function of drawn values a test with a few examples and a slow one with many."""

    def decorate(check: Callable) -> Callable:
        @pytest.mark.parametrize("max_examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(max_examples: int):
            settings = hypothesis.settings(
                max_examples=max_examples,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=[hypothesis.HealthCheck.too_slow],
            )
            settings(hypothesis.given(**drawn)(check))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


@st.composite
def axes(draw, patch_size: int, most: int) -> tuple[int, int]:
    """Length and stride of an axis of up to so many patches, with or without something left over behind the last."""
    stride = draw(st.integers(1, 16))
    return patch_size + draw(st.integers(0, most - 1)) * stride + draw(st.integers(0, stride - 1)), stride


@st.composite
def configs(draw, patch_sizes: st.SearchStrategy = st.integers(1, 16), **fixed) -> ASTConfig:  # noqa: B008
    """Any geometry and any sizes, all of them small."""
    patch_size, heads = draw(patch_sizes), draw(st.integers(1, 4))
    num_mel_bins, frequency_stride = draw(axes(patch_size, 4))
    max_length, time_stride = draw(axes(patch_size, 7))
    options = {
        "hidden_size": heads * draw(st.sampled_from([8, 6])) if heads > 1 else draw(st.integers(8, 20)),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 40)),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "silu"])),
        "layer_norm_eps": draw(st.sampled_from([1e-6, 1e-12])),
        "head_layer_norm_eps": draw(st.sampled_from([None, 1e-5])),
        "qkv_bias": draw(st.booleans()),
        "patch_size": patch_size,
        "num_mel_bins": num_mel_bins,
        "max_length": max_length,
        "frequency_stride": frequency_stride,
        "time_stride": time_stride,
    }
    if "id2label" not in fixed:
        options["num_labels"] = draw(st.integers(1, 5))
    return make_tiny_config(**options | fixed)


def count_patches(length: int, patch_size: int, stride: int) -> int:
    """Places where a patch fits, one by one."""
    return sum(start + patch_size <= length for start in range(0, length, stride))


def grid_of(config: ASTConfig, frames: int | None = None) -> tuple[int, int]:
    """Rows and columns of patches over so many frames."""
    frames = config.max_length if frames is None else frames
    return (
        count_patches(config.num_mel_bins, config.patch_size, config.frequency_stride),
        count_patches(frames, config.patch_size, config.time_stride),
    )


def spectrograms(config: ASTConfig, frames: int | None = None, batch: int = 1, seed: int = 0) -> torch.Tensor:
    shape = (batch, config.max_length if frames is None else frames, config.num_mel_bins)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    """Noise that fades by 40 dB, so that no two stretches are the same and all are far above the floor."""
    wave = torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))
    return wave * torch.logspace(-0.5, -2.5, num_samples)


def assert_near(found, expected, tolerance: float = 1e-5) -> None:
    """Equal to so much of the largest value, or of 1."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=0)


@torch.no_grad()
def logits_of(model: ASTForAudioClassification, input_values: torch.Tensor, **options) -> torch.Tensor:
    return model(input_values, **options).logits


def cut(sequence, sizes: list[int]) -> list:
    """A sequence in pieces of these sizes, over and over; pieces of none among them."""
    pieces, position = [], 0
    for size in itertools.cycle([*sizes, max(1, len(sequence) // 5)]):
        if position >= len(sequence):
            return pieces
        pieces.append(sequence[position : position + size])
        position += size


# Shapes


@holds_for(15, 120, config=configs(), extra=st.integers(0, 40), batch=st.integers(1, 3), seed=SEEDS)
def test_every_geometry_gives_the_shapes_that_it_declares(config, extra, batch, seed):
    """At the trained length and at another one, to the last gradient."""
    model, layers = random_model(config), config.num_hidden_layers
    rows, columns = grid_of(config)
    assert (config.num_frequency_patches, config.num_time_patches) == (rows, columns)
    assert config.num_tokens == 2 + rows * columns == model.base_model.embeddings.position_embeddings.shape[1]
    for frames in (config.max_length, config.patch_size + extra):
        tokens = 2 + math.prod(grid_of(config, frames))
        output = model(spectrograms(config, frames, batch, seed), output_hidden_states=True, output_attentions=True)
        assert output.logits.shape == (batch, config.num_labels)
        assert [tuple(state.shape) for state in output.hidden_states] == [(batch, tokens, config.hidden_size)] * (
            layers + 1
        )
        heads = config.num_attention_heads
        assert [tuple(weights.shape) for weights in output.attentions] == [(batch, heads, tokens, tokens)] * layers
        assert_near(torch.stack(output.attentions).sum(dim=-1), torch.ones(layers, batch, heads, tokens))
        folded = model.fold_patches(output.hidden_states[-1])
        assert folded.shape == (batch, *grid_of(config, frames), config.hidden_size)
    output.logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert output.logits.isfinite().all()


@st.composite
def patchouts(draw) -> ASTConfig:
    config = draw(configs())
    rows = draw(st.integers(0, config.num_frequency_patches - 1))
    columns = draw(st.integers(0, config.num_time_patches - 1))
    left = (config.num_frequency_patches - rows) * (config.num_time_patches - columns)
    patches = draw(st.integers(0, left - 1))
    return make_tiny_config(
        **{key: value for key, value in config.to_dict().items() if key not in ("id2label", "label2id")}
        | {"patchout_rows": rows, "patchout_columns": columns, "patchout_patches": patches}
    )


@holds_for(15, 150, config=patchouts(), extras=st.lists(st.integers(0, 60), min_size=1, max_size=3), seed=SEEDS)
def test_every_patchout_leaves_something_to_learn_from(config, extras, seed):
    """Of any geometry and any lengths: patches of every clip, in order, none of them twice, and finite gradients."""
    model = random_model(config).train()
    clips = [spectrograms(config, config.patch_size + extra, seed=seed)[0] for extra in extras]
    batch = padded(clips, 3)
    columns = [grid_of(config, len(clip))[1] for clip in clips]
    all_columns = grid_of(config, batch["input_values"].shape[1])[1]
    torch.manual_seed(seed)
    kept = model.base_model.embeddings.draw_patches(batch["input_values"].shape[1], torch.tensor(columns))
    if kept is None:
        assert config.patchout_rows == config.patchout_columns == config.patchout_patches == 0
    else:
        assert (kept.diff() > 0).all() and 0 <= kept[0] and kept[-1] < config.num_frequency_patches * all_columns
        assert (kept % all_columns < min(columns)).any()
    if all_columns == config.num_time_patches:
        kept_grid = (config.num_frequency_patches - config.patchout_rows) * (all_columns - config.patchout_columns)
        assert kept is None or len(kept) == kept_grid - config.patchout_patches
    model(**batch).logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# What logits do not depend on


def padded(clips: list[torch.Tensor], extra: int, filler: float = 0.0) -> dict[str, torch.Tensor]:
    frames = max(map(len, clips)) + extra
    values = torch.full((len(clips), frames, clips[0].shape[1]), filler)
    masks = torch.zeros(len(clips), frames, dtype=torch.int64)
    for value, own, clip in zip(values, masks, clips):
        value[: len(clip)], own[: len(clip)] = clip, 1
    return {"input_values": values, "attention_mask": masks}


@holds_for(20, 250, config=configs(), order=st.permutations(range(4)), extra=st.integers(0, 40), seed=SEEDS)
def test_clips_in_another_order_have_their_logits_in_that_order(config, order, extra, seed):
    model, clips = random_model(config), spectrograms(config, config.patch_size + extra, 4, seed)
    assert_near(logits_of(model, clips[list(order)]), logits_of(model, clips)[list(order)])


@holds_for(
    20,
    250,
    config=configs(),
    extras=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    padding=st.integers(0, 40),
    filler=st.sampled_from([0.0, -1.0, 1e30, math.inf, math.nan]),
    implementation=st.sampled_from(["eager", "sdpa"]),
    seed=SEEDS,
)
def test_a_clip_alone_is_the_clip_in_any_batch(config, extras, padding, filler, implementation, seed):
    """Whatever the others are, however far it is padded, and whatever its padding holds."""
    model = random_model(config)
    model.set_attn_implementation(implementation)
    clips = [
        spectrograms(config, config.patch_size + extra, seed=seed + index)[0] for index, extra in enumerate(extras)
    ]
    together = logits_of(model, **padded(clips, padding, filler))
    assert_near(together, torch.cat([logits_of(model, clip[None]) for clip in clips]), 2e-5)


@holds_for(12, 80, config=configs(), extras=st.lists(st.integers(0, 60), min_size=2, max_size=3), seed=SEEDS)
def test_logits_do_not_depend_on_what_else_is_asked_for(config, extras, seed):
    """Hidden states, attention and tuples, under both implementations, with a mask and without."""
    model = random_model(config)
    clips = [spectrograms(config, config.patch_size + extra, seed=seed)[0] for extra in extras]
    with_mask = padded(clips, 2)
    for batch in (with_mask, {"input_values": with_mask["input_values"]}):
        found = []
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            for hidden, attentions in itertools.product((False, True), repeat=2):
                options = {"output_hidden_states": hidden, "output_attentions": attentions}
                output = model(**batch, **options)
                assert (output.hidden_states is not None, output.attentions is not None) == (hidden, attentions)
                found.append(output.logits)
                found.append(model(**batch, **options, return_dict=False)[0])
            for only_pooled in (False, True):
                body = model.audio_spectrogram_transformer(**batch, only_pooled=only_pooled)
                found.append(model.classifier(body.pooler_output))
        for logits in found[1:]:
            assert_near(logits, found[0])


# Features


@st.composite
def extractors(draw, sampling_rates: st.SearchStrategy = RATES, min_bins: int = 1, **fixed) -> ASTFeatureExtractor:
    options = {
        "sampling_rate": draw(sampling_rates),
        "num_mel_bins": draw(st.integers(min_bins, 40)),
        "max_length": draw(st.integers(1, 40)),
        "min_length": draw(st.integers(1, 20)),
        "padding": draw(st.sampled_from(["max_length", "longest"])),
        "padding_value": draw(st.just(0.0) | st.floats(-20, 5)),
        "do_normalize": draw(st.booleans()),
        "mean": draw(st.floats(-20, 5)),
        "std": draw(st.floats(0.25, 10)),
    }
    return ASTFeatureExtractor(**options | fixed)


def window_and_hop(rate: int) -> tuple[int, int]:
    """Whole samples in 25 ms and in 10 ms."""
    return rate * 25 // 1000, rate * 10 // 1000


@holds_for(20, 200, extractor=extractors(), spare=st.lists(st.integers(0, 30000), min_size=1, max_size=4), seed=SEEDS)
def test_every_clip_has_the_frames_that_fit_into_it(extractor, spare, seed):
    """Counted one by one, at any rate, padded either way; with those frames the mask and the features agree."""
    window, hop = window_and_hop(extractor.sampling_rate)
    clips = [noise(window + samples, seed + index) for index, samples in enumerate(spare)]
    fitting = [count_patches(len(clip), window, hop) for clip in clips]
    batch = extractor(clips, return_tensors="pt", return_attention_mask=True)
    values, masks = batch["input_values"], batch["attention_mask"]
    if extractor.padding == "max_length":
        assert values.shape == (len(clips), extractor.max_length, extractor.num_mel_bins)
    else:
        longest = max(*fitting, extractor.min_length)
        assert values.shape == (len(clips), longest, extractor.num_mel_bins)
    fill = torch.tensor(extractor.padding_value)
    fill = extractor.normalize(fill) if extractor.do_normalize else fill
    for clip, value, own, frames in zip(clips, values, masks, fitting):
        assert own.sum() == min(max(frames, extractor.min_length), len(own))
        assert own.tolist() == sorted(own.tolist(), reverse=True)
        alone = extractor(clip, return_tensors="pt")["input_values"][0]
        shared = min(len(alone), len(value))
        assert_near(value[:shared], alone[:shared], 2e-5)
        assert_near(value[frames:], fill.expand_as(value[frames:]))


FORMS = {
    "list": lambda wave: wave.tolist(),
    "tuple": lambda wave: tuple(wave.tolist()),
    "batch of one": lambda wave: [wave.numpy()],
    "tensor": lambda wave: wave,
    "tensor of one row": lambda wave: wave[None],
    "float64 tensor": lambda wave: wave.double(),
    "part of a tensor": lambda wave: torch.stack((wave, wave + 1), dim=1)[:, 0],
    "array": lambda wave: wave.numpy(),
    "float64 array": lambda wave: wave.double().numpy(),
    "long double array": lambda wave: wave.numpy().astype(np.longdouble),
    "array of another byte order": lambda wave: wave.numpy().astype(">f4"),
    "float64 array of another byte order": lambda wave: wave.numpy().astype(">f8"),
    "array that runs backwards": lambda wave: wave.numpy()[::-1].copy()[::-1],
    "every other sample of an array": lambda wave: np.repeat(wave.numpy(), 2)[::2],
    "read-only array": lambda wave: np.frombuffer(wave.numpy().tobytes(), dtype=np.float32),
}


@holds_for(
    40,
    300,
    extractor=extractors(),
    form=st.sampled_from(sorted(FORMS)),
    spare=st.integers(0, 5000),
    seed=SEEDS,
)
def test_every_form_of_a_clip_gives_the_same_features(extractor, form, spare, seed):
    wave = noise(window_and_hop(extractor.sampling_rate)[0] + spare, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = extractor(FORMS[form](wave), return_tensors="pt")["input_values"]
    # Not to the last bit: the mean of a tensor with gaps is added up in another order.
    assert_near(found, extractor(wave, return_tensors="pt")["input_values"])


@holds_for(
    20,
    200,
    kind=st.sampled_from(["u1", "i1", "<i2", ">i2", "<i4", ">i4"]),
    extractor=extractors(st.just(16000)),
    seed=SEEDS,
)
def test_integer_pcm_gives_the_features_of_its_floats(kind, extractor, seed):
    limits = np.iinfo(kind)
    samples = np.random.default_rng(seed).integers(limits.min, limits.max, 2000, endpoint=True).astype(kind)
    zero, full = (128, 128) if kind == "u1" else (0, -float(limits.min))
    floats = ((samples.astype(np.float64) - zero) / full).astype(np.float32)
    expected = extractor(floats, return_tensors="pt")["input_values"]
    assert_near(extractor(samples, return_tensors="pt")["input_values"], expected)


@holds_for(
    15,
    200,
    samples=arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int16, np.uint8]),
        st.tuples(st.integers(1, 8), st.integers(9, 40)),
        elements=st.integers(0, 100),
    ),
    rows_are_channels=st.booleans(),
    as_tensor=st.booleans(),
)
def test_channels_are_averaged_along_the_shorter_axis(samples, rows_are_channels, as_tensor):
    full = {"f": 1.0, "i": 2.0**15, "u": 2.0**7}[samples.dtype.kind]
    expected = (samples.astype(np.float64).mean(axis=0) - (128 if samples.dtype == np.uint8 else 0)) / full
    source = samples if rows_are_channels else samples.T
    source = torch.from_numpy(source.copy()) if as_tensor else source
    assert_near(torch.cat(list(read_recording(source, 16000))), expected.astype(np.float32), 1e-6)


@holds_for(
    20,
    200,
    rate=RATES,
    bins=st.integers(1, 128),
    factor=st.floats(1e-8, 1e4),
    frames=st.integers(0, 20),
    spare=st.integers(0, 3000),
    seed=SEEDS,
)
def test_loudness_adds_to_the_features_and_whole_frames_shift_them(rate, bins, factor, frames, spare, seed):
    """`factor` times the amplitude is 2 log(factor) more, down to the floor of the energies."""
    window, hop = window_and_hop(rate)
    wave = noise(window + frames * hop + spare, seed).double()
    features = fbank(wave, rate, bins)
    is_above = features > FLOOR + 1e-6
    louder = (features + 2 * math.log(factor)).clamp(min=FLOOR)
    torch.testing.assert_close(fbank(factor * wave, rate, bins)[is_above], louder[is_above], atol=1e-6, rtol=0)
    torch.testing.assert_close(fbank(wave[frames * hop :], rate, bins), features[frames:], atol=1e-6, rtol=0)
    assert (features >= FLOOR - 1e-6).all() and features.isfinite().all()


# What arrives in pieces


@holds_for(
    12,
    80,
    file_rate=RATES,
    rate=RATES,
    channels=st.integers(1, 3),
    num_samples=st.integers(1, 12000),
    block_seconds=st.floats(0.001, 1),
    sizes=st.lists(st.integers(0, 4000), max_size=4),
    seed=SEEDS,
)
def test_pieces_are_the_whole(file_rate, rate, channels, num_samples, block_seconds, sizes, seed):
    """Of a file in blocks and of a waveform in any pieces, resampled; of any length that resampling has."""
    waves = torch.stack([noise(num_samples, seed + index) for index in range(channels)], dim=1)
    file = io.BytesIO()
    soundfile.write(file, waves.numpy(), file_rate, format="WAV", subtype="FLOAT")
    whole = load_waveform(file.getvalue(), rate)
    assert len(whole) == -(-num_samples * rate // file_rate)
    assert_near(torch.cat(list(read_blocks(file.getvalue(), rate, block_seconds=block_seconds))), whole, 2e-6)
    resampler = StreamResampler(file_rate, rate)
    pieces = [resampler.push(piece) for piece in cut(waves.mean(dim=1), sizes)]
    assert_near(torch.cat([*pieces, resampler.finish()]), whole, 2e-6)


@st.composite
def cutters(draw) -> tuple[int, int, int, int]:
    length = draw(st.integers(1, 60))
    left = draw(st.integers(0, length - 1))
    return length, left, draw(st.integers(0, length - 1 - left)), draw(st.integers(1, length))


@holds_for(
    30,
    500,
    sizes=cutters(),
    num_samples=st.integers(1, 300),
    pieces=st.lists(st.integers(0, 100), max_size=5),
)
def test_windows_speak_for_every_sample_once(sizes, num_samples, pieces):
    cutter, waveform = WindowCutter(*sizes), torch.arange(num_samples, dtype=torch.float32)
    windows = [window for piece in cut(waveform, pieces) for window in cutter.push(piece)] + cutter.finish()
    starts, stops = [window.start for window in windows], [window.stop for window in windows]
    assert starts[0] == 0 and starts[1:] == stops[:-1] and all(start < num_samples for start in starts)
    assert starts == sorted(set(starts))
    length, left, right, min_length = sizes
    for index, window in enumerate(windows):
        first = index * (length - left - right)
        assert torch.equal(window.waveform, waveform[first : first + length])
    assert num_samples - first - len(windows[-1].waveform) < min_length
    assert len(windows) == 1 or first - (length - left - right) + length < num_samples  # what was heard is not again


@functools.cache
def tagger() -> ASTAudioClassificationPipeline:
    config = make_tiny_config(num_hidden_layers=1, problem_type="multi_label_classification")
    extractor = ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-5.0, std=4.0)
    return ASTAudioClassificationPipeline(model=random_model(config), feature_extractor=extractor, top_k=None)


@holds_for(
    10,
    60,
    num_samples=st.integers(400, 1000) | st.integers(8000, 24000),
    pieces=st.lists(st.integers(0, 8000), max_size=4),
    batch_size=st.integers(2, 7),
    chunk=st.sampled_from([None, 0.175, 0.3, 0.9]),
    stride=st.sampled_from([None, 0.0, (0.05, 0.02)]),
    aggregate=st.sampled_from(["mean", "max"]),
    seed=SEEDS,
)
def test_a_recording_is_heard_the_same_whole_in_batches_and_as_it_arrives(
    num_samples, pieces, batch_size, chunk, stride, aggregate, seed
):
    options = {"return_timeline": True, "chunk_length_s": chunk, "stride_length_s": stride, "aggregate": aggregate}
    wave = noise(num_samples, seed)
    stream = StreamTagger(tagger(), **options)
    rows = [row["timeline"] for piece in cut(wave, pieces) for row in stream.push(piece)]
    whole, half = tagger()(wave.numpy(), **options), wave[: max(400, num_samples // 2)].numpy()
    timeline = whole["timeline"]
    assert timeline.boundaries[0] == 0 and timeline.boundaries[-1] == num_samples
    assert (np.diff(timeline.boundaries) > 0).all() and timeline.seconds == num_samples / 16000
    tags = {tag["label"]: tag["score"] for tag in whole["tags"]}
    for row, scores in zip(rows, timeline.scores):
        assert_near(row.scores[0], scores)
    assert len(timeline.scores) - 1 <= len(rows) <= len(timeline.scores)
    for result in (stream.finish(), tagger()([half, wave.numpy()], batch_size=batch_size, **options)[1]):
        np.testing.assert_array_equal(result["timeline"].boundaries, timeline.boundaries)
        assert_near(result["timeline"].scores, timeline.scores)
        assert {tag["label"]: tag["score"] for tag in result["tags"]} == pytest.approx(tags, abs=1e-5)


# Saved and loaded


@st.composite
def labelled_configs(draw) -> ASTConfig:
    """Names as strangers choose them, and thresholds for some of them."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    thresholds = draw(
        st.none() | st.dictionaries(st.sampled_from(names), st.floats(0, 1) | st.integers(0, 1), max_size=5)
    )
    id2label = dict(enumerate(names))
    problem_types = [None, "multi_label_classification", "regression"]
    if len(names) > 1:
        problem_types.append("single_label_classification")
    problem_type = draw(st.sampled_from(problem_types))
    config = draw(
        configs(
            id2label=id2label,
            label2id={name: index for index, name in id2label.items()},
            thresholds=thresholds,
            problem_type=problem_type,
            head_layer_norm_eps=None,  # Transformers has none of its own
        )
    )
    assert config.id2label == id2label and config.thresholds == thresholds
    return config


@holds_for(8, 50, config=labelled_configs(), seed=SEEDS)
def test_a_model_survives_the_way_to_stock_and_back(config, seed):
    """Ours, saved, loaded by Transformers' own class, saved by it and loaded by ours: logits, names, thresholds."""
    model, clips = random_model(config), spectrograms(config, batch=2, seed=seed)
    expected = logits_of(model, clips)
    with tempfile.TemporaryDirectory() as folder:
        ours, stocks = Path(folder) / "ours", Path(folder) / "stocks"
        model.save_pretrained(ours)
        stock = transformers.ASTForAudioClassification.from_pretrained(ours).eval()
        stock.save_pretrained(stocks)
        loaded = [ASTForAudioClassification.from_pretrained(place) for place in (ours, stocks)]
    assert_near(logits_of(stock, clips), expected)
    for found in loaded:
        assert_near(logits_of(found, clips), expected)
        assert all(torch.equal(weight, found.state_dict()[name]) for name, weight in model.state_dict().items())
        for key in ("id2label", "label2id", "thresholds", "problem_type", *GEOMETRY_KEYS, "patch_size", "hidden_act"):
            assert getattr(found.config, key) == getattr(config, key)
    assert stock.config.id2label == config.id2label


@holds_for(30, 300, config=labelled_configs())
def test_a_configuration_survives_its_file(config):
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        loaded = ASTConfig.from_pretrained(folder)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert list(loaded.id2label.items()) == list(config.id2label.items())


@holds_for(15, 100, extractor=extractors(min_bins=4), spare=st.integers(0, 20000), seed=SEEDS)
def test_an_extractor_survives_its_file_and_gives_stocks_features(extractor, spare, seed):
    """Stock takes no fewer than 4 bins, knows one padding, and pads with 0 whatever the file says."""
    window, hop = window_and_hop(extractor.sampling_rate)
    wave = noise(window + spare, seed)
    with tempfile.TemporaryDirectory() as folder:
        extractor.save_pretrained(folder)
        loaded = ASTFeatureExtractor.from_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchaudio's, of filters that are empty
            stock = transformers.ASTFeatureExtractor.from_pretrained(folder)
            expected = stock(wave.numpy(), sampling_rate=stock.sampling_rate, return_tensors="pt")["input_values"]
    assert loaded.to_dict() == extractor.to_dict()
    found = extractor(wave, return_tensors="pt")
    again = loaded(wave, return_tensors="pt")
    assert again.keys() == found.keys()
    for name, value in again.items():
        assert_near(value, found[name])
    found = extractor(wave, return_tensors="pt", padding="max_length", max_length=extractor.max_length)["input_values"]
    assert found.shape == expected.shape
    scale = 2 * extractor.std if extractor.do_normalize else 1.0
    frames = count_patches(len(wave), window, hop) if extractor.padding_value else None
    torch.testing.assert_close(scale * found[:, :frames], scale * expected[:, :frames], atol=1e-3, rtol=0)


# Conversions


def timm_layout(model: ASTForAudioClassification) -> dict[str, torch.Tensor]:
    """The body of a model under timm's names."""
    body = model.audio_spectrogram_transformer
    weights = {
        "cls_token": body.embeddings.cls_token,
        "dist_token": body.embeddings.distillation_token,
        "pos_embed": body.embeddings.position_embeddings,
    }
    modules = {"patch_embed.proj": body.embeddings.patch_embeddings.projection, "norm": body.layernorm}
    for number, layer in enumerate(body.encoder.layer):
        parts = [getattr(layer.attention.attention, name) for name in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            weights[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat([getattr(part, kind) for part in parts])
        modules |= {
            f"blocks.{number}.norm1": layer.layernorm_before,
            f"blocks.{number}.attn.proj": layer.attention.output["dense"],
            f"blocks.{number}.norm2": layer.layernorm_after,
            f"blocks.{number}.mlp.fc1": layer.intermediate["dense"],
            f"blocks.{number}.mlp.fc2": layer.output["dense"],
        }
    for name, module in modules.items():
        weights |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: weight.detach().clone() for name, weight in weights.items()}


@st.composite
def original_configs(draw, **fixed) -> ASTConfig:
    """What the original's networks all share is fixed: heads of 64 channels at least, biases, epsilons."""
    width = draw(st.sampled_from([8, 50, 64, 128]))
    return draw(
        configs(
            hidden_size=width,
            num_attention_heads=max(1, width // 64),
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            head_layer_norm_eps=1e-5,
            qkv_bias=True,
            problem_type="multi_label_classification",
            **fixed,
        )
    )


@holds_for(
    12,
    120,
    config=original_configs(),
    prefix=st.sampled_from(["", "module."]),
    name=st.sampled_from(["audioset_{}_{}_0.4593.pth", "tiny224_f{}_t{}_1024.pth", "ast_224_{}_{}_.pth"]),
    has_dead_heads=st.booleans(),
    says_length=st.booleans(),
    seed=SEEDS,
)
def test_weights_survive_the_way_to_the_originals_layout_and_back(
    config, prefix, name, has_dead_heads, says_length, seed
):
    model = random_model(config)
    weights = {f"v.{key}": weight for key, weight in timm_layout(model).items()}
    for key, part in (("mlp_head.0", model.classifier.layernorm), ("mlp_head.1", model.classifier.dense)):
        weights |= {f"{key}.weight": part.weight.detach(), f"{key}.bias": part.bias.detach()}
    if has_dead_heads:
        weights |= {"v.head.weight": torch.ones(7, config.hidden_size), "v.head_dist.bias": torch.ones(7)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name.format(config.frequency_stride, config.time_stride)
        torch.save({prefix + key: weight for key, weight in weights.items()}, path)
        loaded = load_original_checkpoint(
            path, num_mel_bins=config.num_mel_bins, max_length=config.max_length if says_length else None
        )
    assert grid_of(loaded.config) == grid_of(config)
    if says_length:
        assert loaded.config.max_length == config.max_length
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, loaded.state_dict()[key]) for key, weight in model.state_dict().items())
    clips = spectrograms(config, seed=seed)
    assert_near(logits_of(loaded, clips), logits_of(model, clips))


@holds_for(8, 80, side=st.integers(1, 4), config=original_configs(), is_release=st.booleans(), seed=SEEDS)
def test_imagenet_weights_land_whole_at_every_size(side, config, is_release, seed):
    """A square grid of three colours becomes one of our geometry: kernels summed, positions adapted, others equal."""
    source = random_model(
        make_tiny_config(
            **{key: getattr(config, key) for key in ("hidden_size", "num_attention_heads", "intermediate_size")},
            **{key: getattr(config, key) for key in ("num_hidden_layers", "patch_size")},
            num_mel_bins=side * config.patch_size,
            max_length=side * config.patch_size,
            frequency_stride=config.patch_size,
            time_stride=config.patch_size,
        )
    )
    weights = timm_layout(source)
    kernel = weights["patch_embed.proj.weight"]
    red, green = torch.randn((2, *kernel.shape), generator=torch.Generator().manual_seed(seed))
    weights["patch_embed.proj.weight"] = torch.cat((red, green, kernel - red - green), dim=1)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": weights} if is_release else weights, Path(folder) / "weights.pth")
        loaded = load_imagenet_checkpoint(Path(folder) / "weights.pth", config).audio_spectrogram_transformer
    for name, weight in source.audio_spectrogram_transformer.state_dict().items():
        if name == "embeddings.position_embeddings":
            weight = adapt_position_embeddings(weight, (side, side), grid_of(config))
        assert_near(loaded.state_dict()[name], weight)


@holds_for(
    30,
    300,
    source=st.tuples(st.integers(1, 9), st.integers(1, 14)),
    target=st.tuples(st.integers(1, 9), st.integers(1, 14)),
    seed=SEEDS,
)
def test_adapted_positions_lie_between_those_that_they_come_from(source, target, seed):
    """The same grid is the identity, a smaller one is a cut, a larger one repeats or mixes what is there."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(1, 2 + math.prod(source), 3, generator=generator)
    adapted = adapt_position_embeddings(table, source, target)
    assert adapted.shape == (1, 2 + math.prod(target), 3)
    assert torch.equal(adapted[:, :2], table[:, :2])
    assert torch.equal(adapt_position_embeddings(table, source, source), table)
    old, new = table[0, 2:].unflatten(0, source), adapted[0, 2:].unflatten(0, target)
    assert (new >= old.amin(dim=(0, 1)) - 1e-6).all() and (new <= old.amax(dim=(0, 1)) + 1e-6).all()
    if target[0] <= source[0] and target[1] <= source[1]:
        top, left = source[0] // 2 - target[0] // 2, source[1] // 2 - target[1] // 2
        assert torch.equal(new, old[top : top + target[0], left : left + target[1]])
    ramp = torch.arange(source[1], dtype=torch.float32).expand(source).flatten()
    table[0, 2:] = ramp.unsqueeze(1)
    along_time = adapt_position_embeddings(table, source, target)[0, 2:].unflatten(0, target)
    assert (along_time.diff(dim=1) >= 0).all() and (along_time.diff(dim=0) == 0).all()


@holds_for(15, 150, config=configs(), other=configs(), seed=SEEDS)
def test_another_geometry_adapts_and_the_same_changes_nothing(config, other, seed):
    model, clips = random_model(config), spectrograms(config, batch=2, seed=seed)
    before, expected = {key: value.clone() for key, value in model.state_dict().items()}, logits_of(model, clips)
    # As many frames more as make no further column, and back: another length of the same grid.
    columns = config.num_time_patches
    length = config.patch_size + columns * config.time_stride - 1
    for frames in (length, config.max_length):
        model.adapt_geometry(max_length=frames)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert_near(logits_of(model, clips), expected)
    # What a clip of another length gets on the fly is what the model adapted to that length gives.
    frames = max(config.patch_size, other.max_length)
    longer = spectrograms(config, frames, seed=seed)
    on_the_fly = logits_of(model, longer)
    model.adapt_geometry(max_length=frames)
    assert_near(logits_of(model, longer), on_the_fly)
    # Any other geometry with these patches.
    target = {key: max(getattr(other, key), config.patch_size) for key in GEOMETRY_KEYS[:2]}
    target |= {key: getattr(other, key) for key in GEOMETRY_KEYS[2:]}
    model.adapt_geometry(**target)
    assert {key: getattr(model.config, key) for key in GEOMETRY_KEYS} == target
    table = model.base_model.embeddings.position_embeddings
    assert table.shape[1] == 2 + math.prod(grid_of(model.config)) and table.isfinite().all()
    assert logits_of(model, spectrograms(model.config, seed=seed)).isfinite().all()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= {"audio_spectrogram_transformer.embeddings.position_embeddings"}


# Metrics


@st.composite
def predictions(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which many are equal, and labels."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 4)))
    elements = draw(st.sampled_from([st.integers(0, 4).map(lambda number: number / 4), st.floats(0, 1, width=32)]))
    return (
        draw(arrays.arrays(np.float32, shape, elements=elements, fill=st.nothing())),
        draw(arrays.arrays(np.bool_, shape, elements=st.booleans(), fill=st.nothing())),
    )


def counted_auc(scores: np.ndarray, positives: np.ndarray) -> float:
    """Share of the pairs of a positive and a negative clip in the right order; equal scores count half."""
    difference = scores[positives][:, None].astype(np.float64) - scores[~positives][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def counted_ap(positives: np.ndarray, scores: np.ndarray) -> float:
    """Mean over the positive clips of the share of positives among the clips with at least their score."""
    return float(np.mean([positives[scores >= score].mean() for score in scores[positives]]))


@holds_for(20, 200, drawn=predictions())
def test_metrics_are_scikit_learns_on_any_scores(drawn):
    scores, labels = drawn
    precisions, areas = metrics.average_precision(scores, labels), metrics.roc_auc(scores, labels)
    has_positives, has_negatives = labels.any(axis=0), ~labels.all(axis=0)
    np.testing.assert_array_equal(np.isnan(precisions), ~has_positives)
    np.testing.assert_array_equal(np.isnan(areas), ~(has_positives & has_negatives))
    found = metrics.compute_metrics(scores, labels, "multi_label_classification")
    assert found["classes_without_positives"] == (~has_positives).sum()
    if not has_positives.any():
        assert found.keys() == {"classes_without_positives"}
        return
    columns = np.flatnonzero(has_positives)
    for metric, wanted in ((average_precision_score, precisions), (counted_ap, precisions)):
        np.testing.assert_allclose(
            [metric(labels[:, index], scores[:, index]) for index in columns], wanted[columns], atol=1e-12
        )
    assert found["mAP"] == pytest.approx(precisions[columns].mean())
    predicted, options = scores >= 0.5, {"average": "binary", "zero_division": 0}
    each = [f1_score(labels[:, index], predicted[:, index], **options) for index in columns]
    assert found["macro_f1"] == pytest.approx(np.mean(each))
    assert found["micro_f1"] == pytest.approx(f1_score(labels.ravel(), predicted.ravel(), **options))
    told = has_positives & has_negatives
    assert ("mAUC" in found) == told.any()
    if told.any():
        assert found["mAUC"] == pytest.approx(roc_auc_score(labels[:, told], scores[:, told], average="macro"))
        by_hand = [counted_auc(scores[:, index], labels[:, index]) for index in np.flatnonzero(told)]
        np.testing.assert_allclose(areas[told], by_hand, atol=1e-12)
        assert ("d_prime" in found) == (0 < found["mAUC"] < 1)
        opposite = np.nanmean(metrics.roc_auc(-scores, labels))
        assert opposite == pytest.approx(1 - found["mAUC"])
        if "d_prime" in found:
            assert found["d_prime"] == pytest.approx(2**0.5 * NormalDist().inv_cdf(found["mAUC"]), abs=1e-6)
            assert metrics.d_prime(opposite) == pytest.approx(-found["d_prime"], abs=1e-6)


TRANSFORMS = {
    "ranks": lambda scores: rankdata(scores, method="dense", axis=0),
    "half of it": lambda scores: scores / 2 - 1,
    "float64": lambda scores: scores.astype(np.float64),
    "logits": lambda scores: np.log((scores.astype(np.float64) + 1) / (2 - scores.astype(np.float64))),
    "cube": lambda scores: (4 * scores.astype(np.float64)) ** 3,
}


@holds_for(20, 250, drawn=predictions(), transform=st.sampled_from(sorted(TRANSFORMS)), data=st.data())
def test_ap_and_auc_know_the_order_of_the_scores_alone(drawn, transform, data):
    """Not their size, nor the order of clips and classes."""
    scores, labels = drawn
    # Float arithmetic may make two neighbours equal; such a transform is none of those meant.
    transformed = TRANSFORMS[transform](scores)
    hypothesis.assume(
        (rankdata(transformed, method="dense", axis=0) == rankdata(scores, method="dense", axis=0)).all()
    )
    clips = data.draw(st.permutations(range(scores.shape[0])))
    classes = data.draw(st.permutations(range(scores.shape[1])))
    for metric in (metrics.average_precision, metrics.roc_auc):
        expected = metric(scores, labels)
        np.testing.assert_allclose(metric(transformed, labels), expected, atol=1e-12)
        np.testing.assert_allclose(metric(scores[clips], labels[clips]), expected, atol=1e-12)
        np.testing.assert_allclose(metric(scores[:, classes], labels[:, classes]), expected[classes], atol=1e-12)


@holds_for(20, 200, drawn=predictions(), data=st.data())
def test_class_indices_are_their_one_hot_labels(drawn, data):
    scores = drawn[0]
    indices = data.draw(arrays.arrays(np.int64, len(scores), elements=st.integers(0, scores.shape[1] - 1)))
    one_hot = np.eye(scores.shape[1], dtype=int)[indices]
    found = metrics.compute_metrics(scores, indices, "single_label_classification")
    assert found == metrics.compute_metrics(scores, one_hot, "single_label_classification")
    best = np.array([np.flatnonzero(row == row.max())[0] for row in scores])
    assert found["accuracy"] == pytest.approx((best == indices).mean())
    assert found["micro_f1"] == pytest.approx(found["accuracy"])


# Timelines


@st.composite
def timelines(draw, names: st.SearchStrategy = st.just(["rain", "dog"])) -> Timeline:  # noqa: B008
    rows, labels = draw(st.integers(1, 15)), draw(names)
    steps = draw(st.lists(st.integers(1, 40000), min_size=rows, max_size=rows))
    elements = st.integers(0, 8).map(lambda number: number / 8) | st.floats(0, 1, width=32)
    scores = draw(arrays.arrays(np.float32, (rows, len(labels)), elements=elements, fill=st.nothing()))
    return Timeline(np.cumsum([0, *steps]), scores, labels, draw(RATES))


LEVELS = st.integers(1, 8).map(lambda number: number / 8) | st.floats(0, 1)
SECONDS = st.sampled_from([0.0, 0.1, 0.5, 3.0])


@holds_for(
    40,
    500,
    timeline=timelines(),
    levels=st.tuples(LEVELS, LEVELS).map(sorted),
    low_share=st.none() | st.floats(0, 1),
    min_seconds=SECONDS,
    merge_seconds=SECONDS,
)
def test_events_lie_in_the_recording_and_in_those_of_a_lower_threshold(
    timeline, levels, low_share, min_seconds, merge_seconds
):
    def find(threshold):
        low = None if low_share is None else low_share * threshold
        return timeline.find_events(threshold, low, min_seconds, merge_seconds)

    (low, high), starts = levels, timeline.times[:-1]
    wide, narrow = find(low), find(high)
    if low_share is None:
        assert wide == timeline.find_events(low, low / 2, min_seconds, merge_seconds)
    for threshold, events in ((low, wide), (high, narrow)):
        assert events == sorted(events, key=lambda event: (event.start, event.label))
        for event in events:
            assert event.start in starts and event.end in timeline.times[1:]
            assert 0 <= event.start < event.end <= timeline.seconds
            assert event.end - event.start >= min_seconds - 1e-9
            assert event.score >= np.float32(threshold)  # scores are float32, and compared as such
            rows = slice(*np.searchsorted(timeline.times, (event.start, event.end)))
            assert event.score == timeline.scores[rows, timeline.label_names.index(event.label)].max()
        for label in timeline.label_names:
            own = [event for event in events if event.label == label]
            assert all(after.start - before.end > merge_seconds - 1e-9 for before, after in itertools.pairwise(own))
            assert all(before.end < after.start for before, after in itertools.pairwise(own))
    for event in narrow:
        around = [other for other in wide if other.label == event.label and other.start <= event.start < other.end]
        assert len(around) == 1 and event.end <= around[0].end and event.score <= around[0].score
    if not min_seconds:  # no score reaches the threshold outside of an event
        for column, label in enumerate(timeline.label_names):
            own = [event for event in wide if event.label == label]
            for start, score in zip(starts, timeline.scores[:, column]):
                if score >= np.float32(low):
                    assert any(event.start <= start < event.end for event in own)


@holds_for(30, 400, timeline=timelines())
def test_the_score_of_a_recording_lies_between_those_of_its_rows(timeline):
    mean, highest = timeline.aggregate("mean"), timeline.aggregate("max")
    lowest = timeline.scores.min(axis=0)
    assert (lowest - 1e-6 <= mean).all() and (mean <= highest + 1e-6).all()
    # A row that is cut in two says the same as before.
    boundaries = np.insert(timeline.boundaries, 1, timeline.boundaries[1] // 2)
    split = Timeline(
        boundaries, timeline.scores.repeat([2] + [1] * (len(timeline.scores) - 1), axis=0), ["a", "b"], 16000
    )
    assert_near(split.aggregate("mean"), mean, 1e-6)
    assert_near(split.aggregate("max"), highest, 0.0)


@holds_for(30, 400, timeline=timelines(st.lists(NAMES, min_size=1, max_size=4, unique=True)))
def test_tables_of_a_timeline_hold_whatever_labels_are_called(timeline):
    with tempfile.TemporaryDirectory() as folder:
        timeline.write_csv(Path(folder) / "scores.csv")
        with open(Path(folder) / "scores.csv", newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    assert header == ["start", "end", *timeline.label_names]
    np.testing.assert_allclose(np.array(rows, dtype=float)[:, 2:], timeline.scores, rtol=1e-5, atol=1e-30)
    events = timeline.find_events(0.5)
    lines = audacity_labels(events).splitlines()
    assert len(lines) == len(events)
    for line, event in zip(lines, events):
        start, end, label = line.split("\t")
        assert (float(start), float(end)) == pytest.approx((event.start, event.end), abs=1e-6)
        assert label.split() == event.label.split()


# Training


@st.composite
def epochs(draw) -> dict:
    """A sampler's arguments, and a layout of as many processes and accumulation steps as its batch divides into."""
    processes, steps, per_device = draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)))
    return {
        "layout": (processes, steps, per_device),
        "num_clips": draw(st.integers(1, 70)),
        "seed": draw(st.integers(0, 10)),
        "epoch": draw(st.integers(0, 5)),
        "is_weighted": draw(st.booleans()),
        "is_grouped": draw(st.booleans()),
        "drop_last": draw(st.booleans()),
        "samples": draw(st.none() | st.integers(1, 150)),
    }


@holds_for(40, 500, drawn=epochs())
def test_an_epoch_has_every_clip_and_the_same_batches_on_any_layout(drawn):
    """As Accelerate shares batches among processes: each update sees the clips of one global batch."""
    processes, steps, per_device = drawn["layout"]
    size, num_clips = processes * steps * per_device, drawn["num_clips"]
    generator = torch.Generator().manual_seed(drawn["seed"])
    seconds = torch.rand(num_clips, generator=generator)
    weights = torch.rand(num_clips, generator=generator).round() + torch.eye(num_clips)[0]
    draws = drawn["samples"] or num_clips
    hypothesis.assume(draws >= size or not drawn["drop_last"])

    def sampler() -> TrainingSampler:
        made = TrainingSampler(
            num_clips,
            size,
            drawn["seed"],
            weights if drawn["is_weighted"] else None,
            drawn["drop_last"],
            seconds if drawn["is_grouped"] else None,
            drawn["samples"],
        )
        made.set_epoch(drawn["epoch"])
        return made

    pairs = list(sampler())
    positions, indices = zip(*pairs)
    assert len(pairs) == len(sampler()) and len(pairs) % size == 0
    assert abs(len(pairs) - draws) < size and (len(pairs) <= draws) >= drawn["drop_last"]
    assert list(positions) == list(range(drawn["epoch"] * len(pairs), (drawn["epoch"] + 1) * len(pairs)))
    counts = np.bincount(indices, minlength=num_clips)
    assert len(counts) == num_clips
    if drawn["is_weighted"]:
        assert (counts[weights.numpy() == 0] == 0).all()
    elif drawn["samples"] is None:
        assert counts.max() - counts.min() <= 1 and (drawn["drop_last"] or counts.min() >= 1)
    else:
        for epoch in range(drawn["epoch"]):  # all until its end together
            before = sampler()
            before.set_epoch(epoch)
            counts += np.bincount([index for _, index in before], minlength=num_clips)
        assert counts.max() - counts.min() <= 1
    shares = [
        list(BatchSamplerShard(BatchSampler(sampler(), per_device, drop_last=False), processes, index))
        for index in range(processes)
    ]
    assert {len(share) for share in shares} == {len(pairs) // (processes * per_device)}
    for update, first in enumerate(range(0, len(pairs), size)):
        seen = [pair for share in shares for batch in share[update * steps : (update + 1) * steps] for pair in batch]
        assert sorted(seen) == pairs[first : first + size]


@holds_for(
    30,
    400,
    size=st.integers(1, 40),
    max_width=st.integers(0, 60),
    position=st.integers(0, 2**40),
)
def test_a_mask_is_one_stretch_of_less_than_was_asked_for(size, max_width, position):
    stretch = draw_mask(size, max_width, clip_generator(0, position))
    assert 0 <= stretch.start <= stretch.stop <= size and stretch.step is None
    assert stretch.stop - stretch.start <= min(max(0, max_width - 1), size)


@holds_for(
    30,
    400,
    shape=st.tuples(st.integers(1, 30), st.integers(1, 8)),
    own_share=st.floats(0, 1),
    max_frames=st.integers(0, 40),
    max_noise=st.floats(0, 1),
    original=st.booleans(),
    position=st.integers(0, 2**40),
)
def test_rolls_and_noise_stay_within_what_was_asked_for(shape, own_share, max_frames, max_noise, original, position):
    own = max(1, round(own_share * shape[0]))
    plain = torch.arange(math.prod(shape), dtype=torch.float32).view(shape) + 1
    plain[own:] = 0
    rolled = roll(plain, draw_shift(max_frames, clip_generator(0, position)), own, 0.0, original)
    shifts = range(-max_frames, max_frames) if max_frames else [0]
    expected = [plain.roll(shift, dims=0) for shift in shifts]
    if own < shape[0] and not original:  # nothing comes round
        expected = [
            torch.cat((torch.zeros(max(shift, 0), shape[1]), plain, torch.zeros(max(-shift, 0), shape[1])))[
                max(-shift, 0) :
            ][: shape[0]]
            for shift in shifts
        ]
    assert any(torch.equal(rolled, candidate) for candidate in expected)
    noise = draw_noise(shape, max_noise, clip_generator(0, position), original)
    lowest, highest = (0.0, max_noise) if original else (-max_noise / 2, max_noise / 2)
    assert (noise is None) == (max_noise == 0)
    if noise is not None:
        assert noise.shape == shape and noise.min() >= lowest and noise.max() <= highest


@holds_for(
    30,
    400,
    lengths=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    alpha=st.integers(1, 12),
    num_samples=st.integers(1, 2500),
    position=st.integers(0, 2**40),
)
def test_mixing_adds_no_energy_and_no_mean(lengths, alpha, num_samples, position):
    anchor, partner = (noise(length, seed) for seed, length in enumerate(lengths))
    generator = clip_generator(0, position)
    weight = draw_mixing_weight(alpha, generator)
    assert 0 <= weight <= 1
    mixed, shared = mix(anchor, partner, weight), min(lengths)
    assert mixed.shape == anchor.shape and abs(mixed.mean()) < 1e-6
    most = weight * anchor.norm() + (1 - weight) * partner[:shared].norm()
    assert mixed.norm() <= most * (1 + 1e-5) + 1e-6
    rest = mixed - weight * anchor
    rest[:shared] -= (1 - weight) * partner[:shared]
    assert_near(rest, rest[:1].expand_as(rest), 1e-6)  # but for a constant, the mean
    assert_near(mix(anchor, partner, 1.0), anchor - anchor.mean(), 1e-6)
    part = anchor[draw_crop(len(anchor), num_samples, generator)]
    assert len(part) == min(num_samples, len(anchor))
    assert any(torch.equal(part, anchor[start : start + len(part)]) for start in range(len(anchor) - len(part) + 1))


@st.composite
def augmentations(draw) -> AugmentArguments:
    max_noise, roll_frames = draw(st.sampled_from([0.0, 0.1])), draw(st.integers(0, 20))
    freq_mask_bins, time_mask_frames = draw(st.integers(0, 30)), draw(st.integers(0, 60))
    return AugmentArguments(
        mixup_probability=draw(st.sampled_from([0.0, 0.5, 1.0])),
        mixup_alpha=draw(st.integers(1, 12) | st.floats(0.01, 20)),
        random_crop=draw(st.booleans()),
        gain_db=draw(st.sampled_from([0.0, 6.0])),
        freq_mask_bins=freq_mask_bins,
        num_freq_masks=draw(st.integers(1, 3)) if freq_mask_bins else 1,
        time_mask_frames=time_mask_frames,
        num_time_masks=draw(st.integers(1, 3)) if time_mask_frames else 1,
        max_noise=max_noise,
        roll_frames=roll_frames,
        original_noise_and_roll=bool(max_noise or roll_frames) and draw(st.booleans()),
    )


@holds_for(
    15,
    150,
    augment=augmentations(),
    extractor=extractors(st.just(16000), max_length=40),
    label_sets=st.lists(st.sets(st.integers(0, 4)), min_size=2, max_size=5),
    multi_label=st.booleans(),
    seed=SEEDS,
)
def test_a_training_clip_is_the_same_in_any_batch_and_mixes_labels_by_their_weights(
    augment, extractor, label_sets, multi_label, seed
):
    generator = np.random.default_rng(seed)
    rows = [
        {
            "waveform": noise(int(generator.integers(400, 9000)), seed + index),
            "labels": sorted(labels) if multi_label else len(labels) % 5,
            "position": int(generator.integers(2**40)),
        }
        for index, labels in enumerate(label_sets)
    ]
    collate = AugmentingCollator(extractor, 5, multi_label, augment=augment, seed=seed % 1000)
    prepared = [prepare(collate, rows, rows) for _ in range(2)]
    together, alone = collate(prepared[0]), [collate([row]) for row in prepared[1]]
    for index, batch in enumerate(alone):
        frames = batch["input_values"].shape[1]
        assert_near(together["input_values"][index, :frames], batch["input_values"][0], 2e-5)
        assert_near(together["labels"][index], batch["labels"][0])
        if extractor.padding == "longest":
            assert together["attention_mask"][index].sum() == batch["attention_mask"].sum()
    labels = together["labels"]
    if labels.ndim == 1:
        assert labels.tolist() == [row["labels"] for row in rows]
        return
    own = torch.stack([collate.label_weights(row) for row in rows])
    if augment.mixup_probability == 0:
        assert torch.equal(labels, own)
    if not multi_label:
        assert_near(labels.sum(dim=1), torch.ones(len(rows)))
    for row, plain in zip(labels, own):
        # Some clip of the rows is the partner: with one weight, all labels lie between the two clips'.
        shares = [(row - other) @ (plain - other) / (plain - other).square().sum().clamp(min=1) for other in own]
        mixtures = [share * plain + (1 - share) * other for share, other in zip(shares, own)]
        fits = [torch.allclose(row, mixture, atol=1e-5) for mixture in mixtures]
        assert any(fit and -1e-5 <= share <= 1 + 1e-5 for fit, share in zip(fits, shares))
