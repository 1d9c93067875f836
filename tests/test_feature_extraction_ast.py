"""Features equal those of torchaudio, of Transformers' own extractor, of the original's files and of the formulas."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import call_with_portable_fft, make_tiny_config, random_model

from modeling_ast import ASTFeatureExtractor
from modeling_ast.fbank import fbank, mel_filters
from modeling_ast.samples import to_float32

SILENCE = -15.942385  # logarithm of the epsilon of float32

# Frames, mean and standard deviation. Source: the original's recipes.
ESC50 = (512, -6.6268077, 5.358466)
SPEECH_COMMANDS = (128, -6.845978, 5.5654526)
AUDIOSET = (1024, -4.2677393, 4.5689974)

EITHER_DEVICE = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def clips(num_samples: int) -> torch.Tensor:
    """Loud, quiet, silent, and quiet beside a large offset."""
    wave = noise(num_samples)
    return torch.stack((9 * wave, 1e-4 * wave, torch.zeros_like(wave), 0.5 + 0.1 * wave))


def kaldi_fbank(waveform: torch.Tensor, sampling_rate: int = 16000, num_mel_bins: int = 128) -> torch.Tensor:
    """Torchaudio's filter bank with the original's arguments."""
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    return kaldi.fbank(
        waveform[None],
        htk_compat=True,
        sample_frequency=sampling_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=num_mel_bins,
        dither=0.0,
        frame_shift=10,
    )


def fbank_by_formula(waveform: np.ndarray, sampling_rate: int, num_mel_bins: int) -> np.ndarray:
    """The filter bank from its definition, frame by frame and filter by filter, in float64."""
    length, shift = int(0.025 * sampling_rate), int(0.010 * sampling_rate)
    num_fft = 2 ** math.ceil(math.log2(length))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))

    def mel(frequency):
        return 1127 * np.log(1 + frequency / 700)

    edges = np.linspace(mel(20), mel(sampling_rate / 2), num_mel_bins + 2)
    lines = mel(np.arange(num_fft // 2) * sampling_rate / num_fft)  # without the line at half the rate
    filters = [np.interp(lines, edges[i : i + 3], [0, 1, 0]) for i in range(num_mel_bins)]
    rows = []
    for start in range(0, len(waveform) - length + 1, shift):
        frame = waveform[start : start + length].astype(np.float64)
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate((frame[:1], frame[:-1]))
        power = np.abs(np.fft.rfft(frame * window, num_fft)) ** 2
        rows.append([np.log(max(power[: num_fft // 2] @ weights, 2.0**-23)) for weights in filters])
    return np.array(rows)


# The filter bank


@pytest.mark.parametrize("num_mel_bins", [40, 64, 128])
@pytest.mark.parametrize("sampling_rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.filterwarnings("ignore:.*mel filterbank.*")
def test_fbank_equals_torchaudio(sampling_rate, num_mel_bins):
    waveforms = clips(sampling_rate // 2)
    expected = [kaldi_fbank(waveform, sampling_rate, num_mel_bins) for waveform in waveforms]
    single = [fbank(waveform, sampling_rate, num_mel_bins) for waveform in waveforms]
    batch = fbank(waveforms, sampling_rate, num_mel_bins)
    torch.testing.assert_close(single, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(list(batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling_rate, num_mel_bins", [(16000, 128), (16000, 40), (8000, 64), (44100, 128)])
def test_fbank_equals_its_formula(sampling_rate, num_mel_bins):
    for waveform in clips(sampling_rate // 4):
        expected = torch.from_numpy(fbank_by_formula(waveform.numpy(), sampling_rate, num_mel_bins))
        for precision, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-4)):  # the filters are always float32
            actual = fbank(waveform.to(precision), sampling_rate, num_mel_bins)
            torch.testing.assert_close(actual, expected.to(precision), atol=tolerance, rtol=0)


@EITHER_DEVICE
def test_fbank_is_as_exact_as_torchaudio(device):
    for waveform in clips(16000).to(device):
        exact = kaldi_fbank(waveform.cpu().double())
        ours, theirs = (function(waveform).cpu().double() - exact for function in (fbank, kaldi_fbank))
        assert ours.abs().max() <= 1.5 * theirs.abs().max()
        assert ours.square().mean().sqrt() <= 1.5 * theirs.square().mean().sqrt()


@EITHER_DEVICE
def test_fbank_stays_on_the_device_of_its_input(device):
    spectrogram = fbank(clips(4000).to(device))
    assert spectrogram.device.type == device and spectrogram.shape == (4, 23, 128)


@pytest.mark.parametrize("sampling_rate, length, shift", [(16000, 400, 160), (22050, 551, 220), (8000, 200, 80)])
def test_geometry_counts_the_frames_that_the_filter_bank_gives(sampling_rate, length, shift):
    extractor = ASTFeatureExtractor(sampling_rate=sampling_rate)
    assert (extractor.frame_length, extractor.frame_shift) == (length, shift)
    assert extractor.seconds(3) == 3 * shift / sampling_rate
    for num_frames in (1, 2, 17):
        num_samples = extractor.num_samples(num_frames)
        for samples in (num_samples, num_samples + shift - 1):
            (spectrogram,) = extractor.fbank([noise(samples)])
            assert len(spectrogram) == extractor.num_frames(samples) == num_frames


@pytest.mark.parametrize("seconds, frames", [(10, 998), (5, 498), (1, 98), (0.5, 48)])
def test_only_whole_frames_count(seconds, frames):
    assert fbank(torch.zeros(int(seconds * 16000))).shape == (frames, 128)


def test_silence_is_the_energy_floor():
    torch.testing.assert_close(fbank(torch.zeros(16000)), torch.full((98, 128), SILENCE), atol=1e-6, rtol=0)


def test_fourth_filter_is_empty():
    empty = np.flatnonzero((mel_filters(16000, 128) == 0).all(axis=0))
    assert empty.tolist() == [3]
    assert (fbank(noise(16000))[:, 3] == fbank(torch.zeros(16000))[:, 3]).all()


def test_fbank_has_a_gradient_also_after_inference_mode():
    with torch.inference_mode():
        fbank(noise(800), 16000, 20)
    waveform = noise(800).requires_grad_()
    fbank(waveform, 16000, 20).sum().backward()
    assert waveform.grad.isfinite().all() and waveform.grad.abs().sum() > 0


# The extractor against others


def features_of_the_originals_clips(reference) -> dict[str, np.ndarray]:
    found = {}
    for index, name in enumerate(np.load(reference / "fbank.npz")["names"]):
        waveform = torch.from_numpy(soundfile.read(reference / "audio16k" / str(name), dtype="float32")[0])
        waveform = waveform - waveform.mean()  # as the original's data loader
        for max_length, mean, std in (ESC50, SPEECH_COMMANDS, AUDIOSET):
            extractor = ASTFeatureExtractor(max_length=max_length, mean=mean, std=std)
            features = extractor(waveform, sampling_rate=16000, return_tensors="np").input_values[0]
            found[f"fbank_{max_length}_{index}"] = features
    return found


@pytest.mark.slow
def test_features_equal_the_original(reference, tmp_path):
    found = call_with_portable_fft(__name__, "features_of_the_originals_clips", reference, tmp_path / "found.npz")
    expected = np.load(reference / "fbank.npz")
    assert len(found) == 3 * len(expected["names"])
    for name, features in found.items():
        np.testing.assert_allclose(features, expected[name], atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"max_length": 100, "num_mel_bins": 64, "mean": -6.0, "std": 5.0}])
def test_features_equal_those_of_transformers(options):
    waveforms = [clip.numpy() for clip in clips(24000)] + [noise(8000).numpy()]
    expected = transformers.ASTFeatureExtractor(**options)(waveforms, sampling_rate=16000, return_tensors="pt")
    actual = ASTFeatureExtractor(**options)(waveforms, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(actual.input_values, expected.input_values, atol=2e-6, rtol=0)


def test_padding_and_silence_have_the_values_that_weights_expect():
    features = ASTFeatureExtractor()(torch.zeros(16000), return_tensors="pt").input_values[0]
    assert features.shape == (1024, 128)
    torch.testing.assert_close(features[:98], torch.full((98, 128), -1.2775938), atol=1e-6, rtol=0)
    torch.testing.assert_close(features[98:], torch.full((926, 128), 0.4670324), atol=1e-6, rtol=0)


# The extractor against itself


@EITHER_DEVICE
def test_features_do_not_depend_on_the_batch(device):
    extractor = ASTFeatureExtractor(max_length=120)
    waveforms = [each.to(device) for each in (*clips(16000), noise(8000, seed=1), noise(24000, seed=2))]
    alone = torch.cat([extractor(waveform, return_tensors="pt").input_values for waveform in waveforms])
    for batch in (waveforms, waveforms[:4]):
        together = extractor(batch, return_tensors="pt").input_values
        torch.testing.assert_close(together, alone[: len(batch)], atol=2e-6, rtol=0)
    # As a GPU computes them, in one call.
    for found, waveform in zip(extractor._fbank_together(waveforms), waveforms, strict=True):
        torch.testing.assert_close(found, extractor.fbank(waveform), atol=1e-5, rtol=0)


def test_call_is_the_composition_of_the_steps():
    extractor = ASTFeatureExtractor(max_length=60)
    waveforms = [noise(8000), noise(16000)]
    spectrograms = extractor.fbank(extractor.to_waveforms(waveforms))
    assert [tuple(spectrogram.shape) for spectrogram in spectrograms] == [(48, 128), (98, 128)]
    fitted = extractor.fit_length(spectrograms)
    assert fitted.shape == (2, 60, 128) and (fitted[0, 48:] == 0).all()
    features = extractor(waveforms, return_tensors="pt").input_values
    # Frames that are cut are not computed, and a transform of fewer may round otherwise.
    torch.testing.assert_close(extractor.normalize(fitted), features, atol=2e-6, rtol=0)
    unnormalised = ASTFeatureExtractor(max_length=60, do_normalize=False)(waveforms, return_tensors="pt").input_values
    torch.testing.assert_close(unnormalised, fitted, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda wave: wave.numpy(), id="numpy float32"),
        pytest.param(lambda wave: wave.double().numpy(), id="numpy float64"),
        pytest.param(lambda wave: wave.half().numpy(), id="numpy float16"),
        pytest.param(lambda wave: np.stack((wave, wave), axis=1)[:, 0], id="numpy strided"),
        pytest.param(lambda wave: wave, id="torch float32"),
        pytest.param(lambda wave: wave.double(), id="torch float64"),
        pytest.param(lambda wave: wave.half(), id="torch float16"),
        pytest.param(lambda wave: wave.tolist(), id="list"),
        pytest.param(lambda wave: tuple(wave.tolist()), id="tuple"),
        pytest.param(lambda wave: [wave.numpy()], id="list of numpy"),
        pytest.param(lambda wave: [wave], id="list of torch"),
        pytest.param(lambda wave: [wave.tolist()], id="list of lists"),
        pytest.param(lambda wave: wave[None], id="torch batch"),
    ],
)
def test_every_form_of_input_gives_the_same_features(form):
    waveform = (noise(1600) * 512).round() / 512  # exact in float16 too
    extractor = ASTFeatureExtractor(max_length=10)
    expected = extractor(waveform, return_tensors="pt").input_values
    assert expected.shape == (1, 10, 128)
    assert torch.equal(extractor(form(waveform), return_tensors="pt").input_values, expected)


def test_a_torch_batch_equals_the_list_of_its_clips():
    extractor = ASTFeatureExtractor(max_length=50)
    batch = clips(8000)
    assert torch.equal(
        extractor(batch, return_tensors="pt").input_values, extractor(list(batch), return_tensors="pt").input_values
    )


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "dtype, zero, full_scale", [("int8", 0, 2**7), ("int16", 0, 2**15), ("int32", 0, 2**31), ("uint8", 128, 2**7)]
)
def test_integer_pcm_is_scaled(dtype, zero, full_scale, as_tensor):
    pcm = np.random.default_rng(0).integers(zero - full_scale, zero + full_scale, 1600).astype(dtype)
    pcm[:2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    scaled = (pcm.astype(np.float64) - zero) / full_scale
    assert scaled.min() == -1 and 0.99 < scaled.max() <= 1
    extractor = ASTFeatureExtractor(max_length=8)
    actual = extractor(torch.from_numpy(pcm) if as_tensor else pcm, return_tensors="pt").input_values
    assert torch.equal(actual, extractor(scaled, return_tensors="pt").input_values)


def test_return_types():
    extractor, waveforms = ASTFeatureExtractor(max_length=50), [noise(8000), noise(4000)]
    as_list, as_numpy, as_torch = (
        extractor(waveforms, return_tensors=name).input_values for name in (None, "np", "pt")
    )
    assert isinstance(as_list, list) and [(type(x), x.shape) for x in as_list] == [(np.ndarray, (50, 128))] * 2
    assert isinstance(as_numpy, np.ndarray) and as_numpy.dtype == np.float32 and as_numpy.shape == (2, 50, 128)
    assert isinstance(as_torch, torch.Tensor) and as_torch.dtype == torch.float32
    assert np.array_equal(as_numpy, as_torch.numpy()) and np.array_equal(as_numpy, np.stack(as_list))


def test_max_length_at_the_call_wins():
    extractor, waveform = ASTFeatureExtractor(max_length=100), noise(16000)
    own = extractor(waveform, return_tensors="pt").input_values
    shorter = extractor(waveform, return_tensors="pt", max_length=40).input_values
    longer = extractor(waveform, return_tensors="pt", max_length=120).input_values
    assert shorter.shape == (1, 40, 128) and longer.shape == (1, 120, 128)
    torch.testing.assert_close(shorter, own[:, :40], atol=2e-6, rtol=0)
    torch.testing.assert_close(longer[:, :100], own, atol=2e-6, rtol=0)
    assert extractor.max_length == 100


# Clips of different lengths


def test_longest_pads_to_the_longest_clip_and_says_what_is_padding():
    extractor = ASTFeatureExtractor(max_length=60)
    waveforms = [noise(8000), noise(16000), noise(400)]  # 48, 98 and 1 frames
    own = extractor.fbank(extractor.to_waveforms(waveforms))
    for padding in ("longest", True):
        batch = extractor(waveforms, return_tensors="pt", padding=padding)
        assert batch.input_values.shape == (3, 98, 128)
        assert batch.attention_mask.shape == (3, 98) and batch.attention_mask.dtype == torch.int64
        for clip, features, spectrogram, frames in zip(batch.attention_mask, batch.input_values, own, (48, 98, 16)):
            assert clip.tolist() == [1] * frames + [0] * (98 - frames)
            assert torch.equal(features[: len(spectrogram)], extractor.normalize(spectrogram))
            padded = features[len(spectrogram) :]
            assert torch.equal(padded, extractor.normalize(torch.zeros_like(padded)))


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("max_length, frames", [(30, [30, 30]), (60, [60, 48]), (98, [98, 48]), (10, [10, 10])])
def test_mask_fits_what_is_cut(padding, max_length, frames):
    waveforms = [noise(16000), noise(8000)]
    batch = ASTFeatureExtractor()(
        waveforms, return_tensors="pt", padding=padding, max_length=max_length, return_attention_mask=True
    )
    assert batch.input_values.shape[:2] == batch.attention_mask.shape == (2, max_length)
    assert batch.attention_mask.sum(dim=1).tolist() == frames


def test_a_clip_alone_under_longest_is_not_padded_but_to_one_patch():
    extractor = ASTFeatureExtractor(padding="longest")
    for samples, frames in ((400, 16), (2800, 16), (2960, 17), (32000, 198)):
        batch = extractor(noise(samples), return_tensors="pt")
        assert batch.input_values.shape == (1, frames, 128)
        assert batch.attention_mask.tolist() == [[1] * frames]


def test_default_padding_gives_no_mask_unless_it_is_asked_for():
    extractor, waveforms = ASTFeatureExtractor(max_length=60), [noise(8000), noise(16000)]
    plain = extractor(waveforms, return_tensors="pt")
    masked = extractor(waveforms, return_tensors="pt", return_attention_mask=True)
    assert "attention_mask" not in plain and torch.equal(masked.input_values, plain.input_values)
    assert masked.attention_mask.sum(dim=1).tolist() == [48, 60]
    assert "attention_mask" not in extractor(waveforms, padding="longest", return_attention_mask=False)


def test_padding_of_the_extractor_is_kept_and_the_call_wins(tmp_path):
    ASTFeatureExtractor(padding="longest", min_length=20, max_length=60).save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path)
    assert (extractor.padding, extractor.min_length) == ("longest", 20)
    assert extractor(noise(400), return_tensors="pt").input_values.shape == (1, 20, 128)
    assert extractor(noise(400), return_tensors="pt", padding="max_length").input_values.shape == (1, 60, 128)
    assert ASTFeatureExtractor.from_pretrained(tmp_path, padding="max_length").padding == "max_length"


def test_mask_comes_in_the_form_of_the_features():
    extractor, waveforms = ASTFeatureExtractor(padding="longest"), [noise(8000), noise(4000)]
    as_list, as_numpy, as_torch = (extractor(waveforms, return_tensors=form) for form in (None, "np", "pt"))
    assert [(type(mask), mask.shape) for mask in as_list.attention_mask] == [(np.ndarray, (48,))] * 2
    assert isinstance(as_numpy.attention_mask, np.ndarray) and as_numpy.attention_mask.dtype == np.int64
    assert np.array_equal(as_numpy.attention_mask, as_torch.attention_mask.numpy())


# What Transformers' other extractors of sequences can do


def test_mask_is_a_setting_too_and_the_call_wins(tmp_path):
    waveforms = [noise(8000), noise(16000)]
    ASTFeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "true")
    ASTFeatureExtractor(return_attention_mask=False, padding="longest").save_pretrained(tmp_path / "false")
    with_mask, without = (ASTFeatureExtractor.from_pretrained(tmp_path / name) for name in ("true", "false"))
    assert with_mask(waveforms, return_tensors="pt").attention_mask.sum(dim=1).tolist() == [48, 98]
    assert "attention_mask" not in with_mask(waveforms, return_attention_mask=False)
    assert "attention_mask" not in without(waveforms)
    assert "attention_mask" in without(waveforms, return_attention_mask=True)
    for name in ("true", "false"):  # stock loads the file, with the same features
        stock = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / name)
        expected = stock([wave.numpy() for wave in waveforms], sampling_rate=16000, return_tensors="pt").input_values
        found = with_mask(waveforms, return_tensors="pt").input_values
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_a_mask_that_stocks_file_does_not_want_is_returned_all_the_same(tmp_path):
    """Every file of the Hub says false, which Transformers' own AST ignores."""
    transformers.ASTFeatureExtractor().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["return_attention_mask"] is False
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path)
    assert "attention_mask" in extractor(noise(8000), padding="longest")


@pytest.mark.parametrize("padding, frames", [("max_length", [60, 60]), ("longest", [48, 98])])
@pytest.mark.parametrize("truncation, most", [(True, 60), (False, 98), (None, None)])
def test_truncation_says_whether_anything_is_cut(padding, frames, truncation, most):
    extractor, waveforms = ASTFeatureExtractor(max_length=60), [noise(8000), noise(16000)]
    found = extractor(waveforms, return_tensors="pt", padding=padding, truncation=truncation).input_values
    assert found.shape[1] == (most or max(frames))
    alone = extractor(waveforms[1], return_tensors="pt").input_values
    torch.testing.assert_close(found[1, :48], alone[0, :48], atol=2e-6, rtol=0)


def test_max_length_beside_truncation_may_count_samples(caplog):
    with caplog.at_level("WARNING"):
        found = ASTFeatureExtractor()(noise(40000), return_tensors="pt", max_length=16000, truncation=True)
    assert found.input_values.shape == (1, 98, 128)
    assert "taken for samples (1 s at 16000 Hz, 98 frames)" in caplog.text and "max_length=98" in caplog.text


def test_pad_makes_the_batch_that_a_call_makes():
    extractor, waveforms = ASTFeatureExtractor(padding="longest"), [noise(8000), noise(16000), noise(400)]
    rows = [{**extractor(wave), "labels": index} for index, wave in enumerate(waveforms)]
    rows = [{name: values[0] if name != "labels" else values for name, values in row.items()} for row in rows]
    batch = extractor.pad(rows, return_tensors="pt")
    expected = extractor(waveforms, return_tensors="pt")
    torch.testing.assert_close(batch.input_values, expected.input_values, atol=2e-6, rtol=0)
    assert torch.equal(batch.attention_mask, expected.attention_mask) and batch.labels.tolist() == [0, 1, 2]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert torch.equal(extractor.pad(columns, return_tensors="pt").input_values, batch.input_values)
    longer = extractor.pad(rows, padding="max_length", max_length=120, return_tensors="np")
    assert longer.input_values.shape == (3, 120, 128) and longer.attention_mask.sum() == 48 + 98 + 16
    shorter = extractor.pad(rows, padding="max_length", max_length=40, truncation=True, return_tensors="np")
    assert shorter.input_values.shape == (3, 40, 128) and shorter.attention_mask.sum() == 40 + 40 + 16
    assert extractor.pad(rows, pad_to_multiple_of=64, return_tensors="np").input_values.shape == (3, 128, 128)
    assert [len(clip) for clip in extractor.pad(rows, padding=False).input_values] == [48, 98, 16]


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_pad_makes_a_batch_of_a_call_longer(return_tensors):
    extractor = ASTFeatureExtractor(padding="longest")
    batch = extractor([noise(8000), noise(16000)], return_tensors=return_tensors)
    longer = extractor.pad(batch, padding="max_length", max_length=120, return_tensors="np")
    assert longer.input_values.shape == (2, 120, 128) and longer.attention_mask.sum(axis=1).tolist() == [48, 98]


@pytest.mark.parametrize(
    "features, options, words",
    [
        ([{"labels": 1}], {}, "features with input_values, got .'labels'"),
        ([{"input_values": np.zeros((20, 128))}], {"padding": "max_length"}, "max_length.*got none"),
        ([{"input_values": np.zeros((20, 128))}], {"truncation": True}, "max_length.*got none"),
        ([{"input_values": np.zeros((20, 128))}], {"padding": "shortest"}, "padding.*got 'shortest'"),
    ],
)
def test_what_cannot_be_padded_is_refused(features, options, words):
    with pytest.raises(ValueError, match=words):
        ASTFeatureExtractor().pad(features, **options)


def test_the_plain_trainer_takes_clips_of_different_lengths(tmp_path):
    """With Transformers' own collator, which asks the extractor to pad."""
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=64, padding="longest")
    rows = []
    for index in range(6):
        features = extractor(noise(4000 + 1500 * index, index))
        rows.append({"input_values": features.input_values[0], "labels": index % 5})
    model = random_model(make_tiny_config(problem_type="single_label_classification"))
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=3, use_cpu=True, report_to=[], disable_tqdm=True
    )
    collator = transformers.DataCollatorWithPadding(extractor)
    assert collator(rows[:2])["attention_mask"].sum(dim=1).tolist() == [23, 32]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    assert math.isfinite(trainer.train().training_loss)


# Errors


@pytest.mark.parametrize(
    "raw_speech, words",
    [
        pytest.param(np.zeros((2, 16000), np.float32), "may be stereo", id="numpy (2, samples)"),
        pytest.param(np.zeros((16000, 2), np.float32), "looks like several channels", id="numpy (samples, 2)"),
        pytest.param(torch.zeros(16000, 2), "looks like several channels", id="torch (samples, 2)"),
        pytest.param(torch.zeros(1, 2, 16000), "Average the channels", id="3-D"),
        pytest.param([np.zeros((2, 16000), np.float32)], "expected mono clips.*Average the channels", id="in a list"),
        pytest.param(torch.tensor(0.5), "mono", id="0-D"),
        pytest.param([], "empty", id="empty list"),
        pytest.param(np.zeros(0, np.float32), "empty", id="empty numpy"),
        pytest.param([torch.zeros(800), torch.zeros(0)], "clip 1 of 2 is empty", id="empty in a batch"),
        pytest.param(torch.zeros(0, 16000), "empty|no clips|without", id="torch batch of no clips"),
        pytest.param(torch.zeros(399), "at least 400 samples.*got 399", id="shorter than a frame"),
        pytest.param(torch.full((800,), torch.nan), "NaN", id="NaN"),
        pytest.param(np.full(800, np.inf), "infinite", id="infinite"),
        pytest.param(np.zeros(800, np.int64), "int64.*full scale is not known", id="int64"),
        pytest.param([0] * 800, "int64.*full scale is not known", id="list of int"),
        pytest.param(torch.zeros(800, dtype=torch.bool), "bool", id="bool"),
        pytest.param(torch.zeros(800, dtype=torch.complex64), "complex", id="complex"),
        pytest.param("dog.wav", "got str.*load_waveform", id="file name"),
        pytest.param(["dog.wav", "cat.wav"], "load_waveform", id="file names"),
        pytest.param(b"RIFF", "got bytes.*load_waveform", id="bytes"),
        pytest.param(None, "got NoneType", id="None"),
    ],
)
def test_what_is_no_mono_clip_is_refused(raw_speech, words):
    with pytest.raises(ValueError, match=f"(?is){words}"):
        ASTFeatureExtractor()(raw_speech, sampling_rate=16000, return_tensors="pt")


def test_a_clip_of_one_frame_is_enough():
    assert ASTFeatureExtractor(max_length=2)(torch.zeros(400), return_tensors="pt").input_values.shape == (1, 2, 128)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"sampling_rate": 44100}, ValueError, "Expected clips at 16000 Hz, got 44100 Hz.*load_waveform"),
        ({"max_length": 0}, ValueError, "max_length.*got 0"),
        ({"max_length": -1, "padding": "longest"}, ValueError, "max_length.*got -1"),
        ({"padding": "shortest"}, ValueError, "padding to be one of max_length, longest, got 'shortest'"),
        ({"padding": False}, ValueError, "padding to be one of max_length, longest, got False"),
        ({"return_tensors": "jx"}, ValueError, "jx"),
    ],
)
def test_unusable_arguments_of_the_call_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        ASTFeatureExtractor()(torch.zeros(16000), **options)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"max_lenght": 512}, TypeError, "'max_lenght'"),
        ({"return_attention_mask": "yes"}, ValueError, "return_attention_mask to be true, false or none, got .yes."),
        ({"do_normalize": "false"}, ValueError, "do_normalize to be true or false, got 'false'"),
        ({"feature_size": 2}, ValueError, "feature_size can only be 1"),
        ({"padding_side": "left"}, ValueError, "padding_side can only be 'right'"),
        ({"std": 0.0}, ValueError, "std of at least 1e-06, got 0.0"),
        ({"std": math.nan}, ValueError, "std to be a number of at most 1e.06 in size, got nan"),
        ({"mean": "-4"}, ValueError, "mean to be a number"),
        ({"sampling_rate": 20}, ValueError, "sampling_rate of at least 100"),
        ({"sampling_rate": 2**70}, ValueError, "sampling_rate.*got 1180591620717411303424"),
        ({"max_length": 10**9}, ValueError, "max_length to be a whole number from 1 to 1,000,000, got 1000000000"),
        ({"mean": 1e300}, ValueError, "mean to be a number of at most 1e.06 in size, got 1e.300"),
        ({"std": 1e-300}, ValueError, "std of at least 1e-06, got 1e-300"),
        ({"sampling_rate": 0}, ValueError, "sampling_rate.*got 0"),
        ({"num_mel_bins": -1}, ValueError, "num_mel_bins.*got -1"),
        ({"max_length": 10.5}, ValueError, "max_length.*got 10.5"),
        ({"min_length": 0}, ValueError, "min_length.*got 0"),
        ({"padding": "shortest"}, ValueError, "padding to be one of max_length, longest, got 'shortest'"),
    ],
)
def test_unusable_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        ASTFeatureExtractor(**options)


# Files


def test_saved_extractor_comes_back_without_naming_a_type(tmp_path):
    extractor = ASTFeatureExtractor(max_length=96, num_mel_bins=64, mean=-6.0, std=5.0, do_normalize=False)
    extractor.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert "feature_extractor_type" not in content
    assert content.items() >= {"max_length": 96, "num_mel_bins": 64, "mean": -6.0, "std": 5.0}.items()
    assert ASTFeatureExtractor.from_pretrained(tmp_path).to_dict() == extractor.to_dict()


def test_type_is_written_where_code_travels_along():
    with_code = ASTFeatureExtractor(auto_map={"AutoFeatureExtractor": "feature_extraction_ast.ASTFeatureExtractor"})
    assert with_code.to_dict()["feature_extractor_type"] == "ASTFeatureExtractor"


def test_file_written_by_transformers_keeps_its_values(tmp_path):
    options = {
        "max_length": 96,
        "num_mel_bins": 64,
        "mean": -6.0,
        "std": 5.0,
        "sampling_rate": 8000,
        "padding_value": 1.0,
    }
    transformers.ASTFeatureExtractor(**options).save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor) is ASTFeatureExtractor
    assert {name: getattr(extractor, name) for name in options} == options


def test_unknown_keys_of_a_file_are_dropped_with_a_warning(tmp_path, caplog):
    ASTFeatureExtractor(max_length=96).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hop_length": 160, "feature_size": 1}))
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path)
    assert extractor.max_length == 96 and not hasattr(extractor, "hop_length")
    assert "hop_length" in caplog.text and "feature_size" not in caplog.text


def test_overrides_of_from_pretrained_win(tmp_path):
    ASTFeatureExtractor(max_length=96, std=5.0).save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path, mean=-6.0, max_length=128)
    assert (extractor.mean, extractor.max_length, extractor.std) == (-6.0, 128, 5.0)


@pytest.mark.parametrize(
    "name, value",
    [("std", 0.0), ("feature_size", 2), ("max_lenght", 128), ("padding", "shortest"), ("min_length", 0)],
)
def test_unusable_overrides_of_from_pretrained_are_refused(tmp_path, name, value):
    ASTFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError), match=name):
        ASTFeatureExtractor.from_pretrained(tmp_path, **{name: value})


def test_features_do_not_depend_on_the_mode_of_an_earlier_call():
    """Filters are kept between calls; tracing, another default type or autocast must not come along with them."""
    clip = torch.randn(800, generator=torch.Generator().manual_seed(0))
    expected = fbank(clip, 16000, 33)

    class Traced(torch.nn.Module):
        def forward(self, waveform):
            return fbank(waveform, 16000, 34)

    traced = torch.export.export(Traced(), (clip,), strict=False).module()
    assert torch.equal(fbank(clip, 16000, 34), traced(clip))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fbank(clip, 16000, 33), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert fbank(clip, 16000, 35).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_extractor_passes_gradients_to_the_waveform():
    clip = torch.randn(800, requires_grad=True)
    ASTFeatureExtractor(max_length=8)(clip, return_tensors="pt").input_values.sum().backward()
    assert clip.grad.abs().sum() > 0


def test_each_step_alone_refuses_what_it_cannot_use():
    extractor = ASTFeatureExtractor()
    with pytest.raises(ValueError, match="at least 400 samples .one frame of 25 ms at 16000 Hz., got 399"):
        extractor.fbank([torch.zeros(399)])
    with pytest.raises(ValueError, match="padding to be one of max_length, longest, got 'left'"):
        extractor.fit_length([torch.zeros(5, 128)], padding="left")
    with pytest.raises(ValueError, match="max_length to be a whole number of frames above 0, got 0.5"):
        extractor.fit_length([torch.zeros(5, 128)], max_length=0.5)
    with pytest.raises(ValueError, match="uint8, int8, int16 or int32, got torch.int64 for row 3: its full scale"):
        to_float32(torch.zeros(5, dtype=torch.int64), "row 3")
