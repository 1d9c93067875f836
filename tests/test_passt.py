"""PaSST's features and network give what its own code computes, and everything that uses a model takes its folder."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_sound
from test_conversion import DEPTH, WIDTH, classify, encode, timm_weights
from test_layouts import embed_patches
from transformers import AutoFeatureExtractor, pipeline
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

from modeling_ast import (
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ModelError,
    PaSSTFeatureExtractor,
    load_original_checkpoint,
    load_waveform,
)
from modeling_ast.commands.convert import main as convert
from modeling_ast.commands.evaluate import main as evaluate
from modeling_ast.commands.train import main as train
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.inference.embeddings import audio_embedder
from modeling_ast.inference.ensemble import load_member
from modeling_ast.inference.export import export_onnx
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.inference.plots import _pool_spectrogram
from modeling_ast.training.building import build_model_and_extractor
from modeling_ast.training.publishing import gather, load_folder

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ROWS, COLUMNS, LABELS = 12, 5, ["rain", "dog", "siren"]  # of 128 mel bins, and of 56 frames, at strides of 10
RATE = 32000


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_features(waveform: np.ndarray) -> np.ndarray:
    """(frames, 128), one operation after another in float64."""
    emphasised = waveform[1:].astype(np.float64) - 0.97 * waveform[:-1]
    padded = np.pad(emphasised, 512, mode="reflect")
    window = np.zeros(1024)
    window[112:912] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 799)
    starts = range(0, len(padded) - 1024 + 1, 320)
    power = np.abs(np.fft.rfft([padded[start : start + 1024] * window for start in starts])) ** 2

    def to_mel(frequency):
        return 1127 * np.log(1 + frequency / 700)

    edges = np.linspace(0, to_mel(15000), 130)
    lines = to_mel(np.arange(513) * RATE / 1024)[:, None]
    rising = (lines - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - lines) / (edges[2:] - edges[1:-1])
    return (np.log(power @ np.clip(np.minimum(rising, falling), 0, None) + 1e-5) + 4.5) / 5


# Features


@pytest.mark.parametrize("samples", [800, 1120, 1121, 16000, 33333])
def test_features_are_those_of_the_formulas(samples):
    waveform = noise(samples) * torch.logspace(0, -4, samples)  # down to silence
    expected = plain_features(waveform.numpy())
    extractor = PaSSTFeatureExtractor(padding="longest")
    found = extractor(waveform, sampling_rate=RATE, return_tensors="pt").input_values[0]
    assert extractor.num_frames(samples) == len(expected)
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[len(expected) :], torch.full_like(found[len(expected) :], SILENCE))


SILENCE = (math.log(1e-5) + 4.5) / 5


def test_frames_lie_where_the_geometry_says():
    extractor, waveform = PaSSTFeatureExtractor(), noise(20000)
    whole = extractor.fbank([waveform])[0]
    for frames in (2, 16, 40):
        samples = extractor.num_samples(frames)
        changed = torch.cat((waveform[:samples], noise(20000 - samples, seed=1)))
        # Whatever comes behind.
        torch.testing.assert_close(extractor.fbank([changed])[0][:frames], whole[:frames], atol=1e-6, rtol=0)
        changed[samples - 3] += 100.0  # the window is 0 at its ends
        assert (extractor.fbank([changed])[0][:frames] - whole[:frames]).abs().max() > 1e-3
        torch.testing.assert_close(extractor.fbank([waveform], frames)[0], whole[:frames], atol=1e-5, rtol=0)
        longest = extractor.max_samples(frames)
        assert (extractor.num_frames(longest), extractor.num_frames(longest + 1)) == (frames, frames + 1)
    click = torch.zeros(20000)
    click[6400] = 1.0
    energy = extractor.fbank([click])[0].exp().sum(dim=1)
    middles = extractor.first_sample + torch.arange(len(energy)) * extractor.frame_shift + extractor.frame_length / 2
    assert middles[energy.argmax()] == 6400
    tone = torch.sin(2 * math.pi * 3000 * torch.arange(20000) / RATE)
    assert abs(extractor.mel_frequencies()[extractor.fbank([tone])[0][20].argmax()] - 3000) < 40


def test_ten_seconds_are_a_thousand_frames_and_shorter_clips_are_padded_with_silence():
    extractor, waveform = PaSSTFeatureExtractor(), noise(RATE)
    assert extractor.max_samples(extractor.max_length) == 10 * RATE
    found = extractor(waveform, return_tensors="pt").input_values[0]
    padded = extractor(torch.nn.functional.pad(waveform, (0, 9 * RATE)), return_tensors="pt").input_values[0]
    # As PaSST pads waveforms, but for frames that reach over the end of the clip.
    torch.testing.assert_close(found[:98], padded[:98], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[102:], padded[102:], atol=1e-5, rtol=0)


def test_features_of_a_batch_are_those_of_each_clip():
    extractor, clips = PaSSTFeatureExtractor(max_length=100), noise(3, 40000)
    together = extractor(clips, return_tensors="pt").input_values
    alone = torch.cat([extractor(clip, return_tensors="pt").input_values for clip in clips])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)
    assert torch.equal(extractor.fbank(clips.double(), 7).float().isfinite(), torch.ones(3, 7, 128, dtype=bool))


def test_a_file_of_its_settings_is_its_own_and_stock_refuses_it(tmp_path, monkeypatch):
    extractor = PaSSTFeatureExtractor(max_length=64, num_mel_bins=64, padding="longest")
    extractor.save_pretrained(tmp_path)
    for loaded in (ASTFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert type(loaded) is PaSSTFeatureExtractor and loaded.to_dict() == extractor.to_dict()
    with pytest.raises(ValueError, match="Expected a sampling_rate of 32000, as PaSST has, got 16000"):
        ASTFeatureExtractor.from_pretrained(tmp_path, sampling_rate=16000)
    with pytest.raises(TypeError, match="PaSSTFeatureExtractor has no option 'hop'"):
        PaSSTFeatureExtractor(hop=160)
    with pytest.raises(ValueError, match="Expected a clip of at least 800 samples"):
        extractor.fbank(noise(799))
    monkeypatch.setattr(FEATURE_EXTRACTOR_MAPPING, "_extra_content", {})  # as where this package is not
    with pytest.raises(ValueError, match="Unrecognized feature extractor"):
        AutoFeatureExtractor.from_pretrained(tmp_path)


# The network


def passt_weights(columns: int = COLUMNS) -> dict[str, torch.Tensor]:
    """Random weights under the names of its files."""
    weights = timm_weights(1, num_channels=1)
    for name in ("pos_embed", "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
        del weights[name]
    shapes = {
        "new_pos_embed": (1, 2, WIDTH),
        "freq_new_pos_embed": (1, WIDTH, ROWS, 1),
        "time_new_pos_embed": (1, WIDTH, 1, columns),
        "head.0.weight": (WIDTH,),
        "head.0.bias": (WIDTH,),
        "head.1.weight": (3, WIDTH),
        "head.1.bias": (3,),
        "head_dist.weight": (3, WIDTH),
        "head_dist.bias": (3,),
    }
    return weights | {name: noise(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def passt(tmp_path) -> Path:
    torch.save(passt_weights(), tmp_path / "passt-s-f128-p16-s10-ap.476-swa.pt")
    return tmp_path / "passt-s-f128-p16-s10-ap.476-swa.pt"


@pytest.fixture
def folder(passt, tmp_path) -> Path:
    convert([str(passt), str(tmp_path / "passt")])
    model = ASTForAudioClassification.from_pretrained(tmp_path / "passt")
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    model.save_pretrained(tmp_path / "passt")
    return tmp_path / "passt"


def passt_forward(get: dict[str, torch.Tensor], input_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled output and logits, from the description: the first positions along time where there are more."""
    patches = embed_patches(get, input_values[:, None].transpose(2, 3), stride=10)
    patches = patches + get["time_new_pos_embed"][..., : patches.shape[-1]] + get["freq_new_pos_embed"]
    special = torch.cat((get["cls_token"], get["dist_token"]), dim=1) + get["new_pos_embed"]
    tokens = torch.cat((special.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
    pooled = encode(get, tokens)[:, :2].mean(dim=1)
    return pooled, classify(get, pooled, "head")


@pytest.mark.parametrize(("max_length", "frames"), [(None, 56), (36, 36)])
def test_network_gives_the_outputs_of_its_formulas_at_the_length_that_it_is_loaded_with(passt, max_length, frames):
    model, input_values = load_original_checkpoint(passt, max_length=max_length), 10 * noise(2, frames, 128)
    assert (model.config.max_length, model.config.frequency_stride, model.config.time_stride) == (frames, 10, 10)
    with torch.no_grad():
        outputs = model.base_model(input_values).pooler_output, model(input_values).logits
    for found, expected in zip(outputs, passt_forward(passt_weights(), input_values)):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_shorter_clip_gets_the_middle_positions_as_in_ast_and_not_the_first_as_in_passt(passt):
    model, input_values = load_original_checkpoint(passt), 10 * noise(2, 36, 128)  # 3 of 5 columns
    get = passt_weights()
    get["time_new_pos_embed"] = get["time_new_pos_embed"][..., 1:4]
    with torch.no_grad():
        logits = model(input_values).logits
    torch.testing.assert_close(logits, passt_forward(get, input_values)[1], atol=2e-5, rtol=1e-5)
    assert (logits - passt_forward(passt_weights(), input_values)[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("columns", "length"), [(99, 1000), (200, 2000), (300, 3000), (60, 606)], ids=["10 s", "20 s", "30 s", "another"]
)
def test_length_is_that_of_the_clips_that_it_was_trained_on(passt, columns, length):
    torch.save(passt_weights(columns), passt)
    assert load_original_checkpoint(passt).config.max_length == length


@pytest.mark.parametrize(("rows", "columns", "stride"), [(12, 99, 10), (10, 83, 12), (9, 71, 14), (8, 62, 16)])
def test_strides_are_told_by_the_rows(passt, rows, columns, stride):
    tables = {"freq_new_pos_embed": noise(1, WIDTH, rows, 1), "time_new_pos_embed": noise(1, WIDTH, 1, columns)}
    torch.save(passt_weights() | tables, passt)
    config = load_original_checkpoint(passt).config
    assert (config.frequency_stride, config.time_stride, config.max_length) == (stride, stride, 1000)
    assert (config.num_frequency_patches, config.num_time_patches) == (rows, columns)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"freq_new_pos_embed": noise(1, WIDTH, 11, 1)}, {}, "as arguments: 11 rows are no published PaSST"),
        ({"time_new_pos_embed": noise(1, WIDTH, 5)}, {}, r"Expected new_pos_embed.*got .*\(1, 128, 5\)"),
        ({"head.2.weight": noise(1)}, {}, "not used: head.2.weight"),
        ({}, {"max_length": 66}, "Expected 60 patches.*66 frames.*give 72"),
        ({}, {"time_stride": 0}, "of at least 1, got time_stride 0"),
    ],
)
def test_another_passt_is_refused_in_a_sentence(passt, changes, options, words):
    torch.save(passt_weights() | changes, passt)
    with pytest.raises(ValueError, match=words):
        load_original_checkpoint(passt, **options)


def test_a_passt_of_more_frames_a_second_is_refused(passt):
    path = passt.rename(passt.with_name("passt-s-f128-stfthop160-p16-s10-ap.473-swa.pt"))
    with pytest.raises(ValueError, match="Expected a PaSST of 100 frames a second, got passt-s-f128-stfthop160"):
        load_original_checkpoint(path)


# In use


@pytest.mark.parametrize("is_converted", [False, True])
def test_recipes_and_ensembles_take_its_features_with_its_weights(passt, folder, is_converted):
    name = str(folder if is_converted else passt)
    model, extractor = build_model_and_extractor(ModelArguments(model_name_or_path=name), LABELS)
    assert type(extractor) is PaSSTFeatureExtractor and (extractor.mean, extractor.std) == (-4.5, 2.5)
    assert (extractor.max_length, model.config.max_length) == (56, 56)
    model, extractor = load_member(name, ModelArguments(), LABELS)
    assert type(extractor) is PaSSTFeatureExtractor


def test_pipelines_give_the_scores_of_the_formulas(folder):
    tagger = audio_tagger(folder)
    waveform = noise(tagger.feature_extractor.max_samples(56))
    features = torch.from_numpy(plain_features(waveform.numpy())).float()[None]
    expected = passt_forward(passt_weights(), features)[1][0].sigmoid()
    sound = {"raw": waveform.numpy(), "sampling_rate": RATE}
    for classifier in (tagger, pipeline("audio-classification", model=str(folder))):
        scores = {tag["label"]: tag["score"] for tag in classifier(sound, top_k=None)}
        np.testing.assert_allclose([scores[label] for label in LABELS], expected, atol=1e-4)
    long = {"raw": noise(RATE).numpy(), "sampling_rate": RATE}
    assert tagger(long, return_timeline=True)["timeline"].seconds == 1.0
    embedder = audio_embedder(folder, level="patch")
    assert np.isfinite(embedder(long).vectors).all()
    columns = embedder(sound)
    np.testing.assert_allclose(columns.starts, [0.0, 0.0875, 0.1875, 0.2875, 0.3875])


def test_its_code_travels_along_where_a_model_is_pushed_with_code(folder, tmp_path, monkeypatch):
    (tmp_path / "staged").mkdir()
    gather(folder, tmp_path / "staged", *load_folder(folder), with_code=True)
    assert (tmp_path / "staged" / "feature_extraction_passt.py").is_file()
    card = (tmp_path / "staged" / "README.md").read_text(encoding="utf-8")
    assert "It needs `modeling_ast`, for its `PaSSTFeatureExtractor`." in card
    assert "import modeling_ast  # without it Transformers has no PaSSTFeatureExtractor" in card
    monkeypatch.setattr(FEATURE_EXTRACTOR_MAPPING, "_extra_content", {})
    carried = AutoFeatureExtractor.from_pretrained(tmp_path / "staged", trust_remote_code=True)
    assert type(carried).__name__ == "PaSSTFeatureExtractor" and type(carried) is not PaSSTFeatureExtractor
    waveform = noise(18000)
    expected = ASTFeatureExtractor.from_pretrained(folder)(waveform, return_tensors="pt").input_values
    torch.testing.assert_close(carried(waveform, return_tensors="pt").input_values, expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_its_graph_holds_its_features(folder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, extractor = load_folder(folder)
    with pytest.raises(ModelError, match="PaSSTFeatureExtractor mirrors a clip at its end"):
        export_onnx(model, extractor, tmp_path / "passt.onnx", with_lengths=True)
    export_onnx(model, extractor, tmp_path / "passt.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "passt.onnx")
    for samples in (9000, 18000, 30000):
        waveforms = noise(2, samples)
        with torch.no_grad():
            expected = model(**extractor(waveforms, return_tensors="pt")).logits.sigmoid()
        (scores,) = session.run(None, {"waveform": waveforms.numpy()})
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.slow
def test_a_passt_is_trained_evaluated_and_tags_as_any_model(folder, tmp_path):
    arguments = {"dataset_name": "synthetic", "max_train_samples": 20, "max_eval_samples": 10, "num_train_epochs": 1}
    arguments |= {"model_name_or_path": folder, "output_dir": tmp_path / "out", "do_train": True, "use_cpu": True}
    argv = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    train([*argv, "--report_to", "none"])
    assert type(ASTFeatureExtractor.from_pretrained(tmp_path / "out")) is PaSSTFeatureExtractor
    for kind in ("siren", "noise"):
        (tmp_path / "sounds" / kind).mkdir(parents=True)
        write_sound(tmp_path / "sounds" / kind / "0.wav", noise(16000))
    assert evaluate([str(tmp_path / "out"), str(tmp_path / "sounds")])["clips"] == {"all": 2}


@pytest.mark.parametrize("extractor_class", [ASTFeatureExtractor, PaSSTFeatureExtractor])
def test_the_spectrogram_of_a_picture_does_not_depend_on_the_pieces(extractor_class):
    extractor = extractor_class()
    whole = noise(3 * RATE + 123)
    pieces = whole.split([1000, 5, 40000, len(whole) - 41005])
    (expected,) = extractor.fbank([whole])
    found = _pool_spectrogram(pieces, extractor, len(whole))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# Its own code


@pytest.fixture
def hear21passt(monkeypatch, capsys):
    """The package, which prints whatever it does, beside a torch that gives complex numbers alone."""
    module = pytest.importorskip("hear21passt.models.passt", reason="hear21passt is not installed")
    real = torch.stft
    monkeypatch.setattr(
        torch, "stft", lambda *args, **kwargs: torch.view_as_real(real(*args, **kwargs | {"return_complex": True}))
    )
    return module


def test_features_equal_hear21passts(hear21passt):
    from hear21passt.models.preprocess import AugmentMelSTFT

    mel = AugmentMelSTFT(freqm=48, timem=192, fmin_aug_range=10, fmax_aug_range=2000).eval()
    extractor = PaSSTFeatureExtractor(padding="longest")
    waveforms = [noise(samples) for samples in (16000, 10 * RATE)]
    waveforms += [load_waveform(path, RATE) for path in sorted((DATA / "esc10" / "audio").glob("*.ogg"))[::80]]
    for waveform in waveforms:
        found = extractor(waveform, return_tensors="pt").input_values[0]
        torch.testing.assert_close(found, mel(waveform[None])[0].T, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("stride", "frames"), [(10, 1000), (10, 998), (16, 1000)])
def test_logits_equal_hear21passts(hear21passt, tmp_path, stride, frames):
    torch.manual_seed(0)
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": WIDTH // 64}
    net = hear21passt.PaSST(img_size=(128, 998), stride=stride, num_classes=3, distilled=True, **sizes).eval()
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    torch.save(net.state_dict(), tmp_path / "passt.pt")
    input_values = 10 * noise(1, frames, 128)
    with torch.no_grad():
        logits = load_original_checkpoint(tmp_path / "passt.pt")(input_values).logits
        expected, _ = net(input_values.transpose(1, 2)[:, None])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
