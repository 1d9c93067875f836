"""Networks that others published and that are ours by other names give what their own code computes."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from test_conversion import DEPTH, WIDTH, encode, timm_weights

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    ModelError,
    load_original_checkpoint,
)
from modeling_ast.commands.convert import main as convert
from modeling_ast.data.label_checks import read_model_labels
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.inference.embeddings import audio_embedder
from modeling_ast.inference.ensemble import load_member
from modeling_ast.loading import load_model
from modeling_ast.training.building import build_model_and_extractor

BINS, FRAMES = 32, 96  # two rows and six columns of patches that do not overlap
LABELS = ["rain", "dog", "siren"]


@pytest.fixture
def input_values() -> torch.Tensor:
    return torch.randn(2, FRAMES, BINS, generator=torch.Generator().manual_seed(2))


def embed_patches(get: dict[str, torch.Tensor], image: torch.Tensor, stride: int = 16) -> torch.Tensor:
    return F.conv2d(image, get["patch_embed.proj.weight"], get["patch_embed.proj.bias"], stride=stride)


def assert_hidden_states(model: ASTModel, input_values: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest: sums in another order."""
    with torch.no_grad():
        outputs = model(input_values)
    options = {"atol": 1e-5 * expected.abs().max().item(), "rtol": 0}
    torch.testing.assert_close(outputs.last_hidden_state, expected, **options)
    torch.testing.assert_close(outputs.pooler_output, expected[:, :2].mean(dim=1), **options)


def assert_same(model: ASTModel, expected: ASTModel) -> None:
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), atol=0, rtol=0)


# SSAST: the body behind `v.`, what predicted masked patches, and the spectrogram's size as numbers


def ssast_weights(patch: tuple[int, int] = (16, 16)) -> dict[str, torch.Tensor]:
    num_patches = (BINS // patch[0]) * (FRAMES // patch[1])
    body = timm_weights(num_patches, num_channels=1)
    body["patch_embed.proj.weight"] = torch.randn(WIDTH, 1, *patch, generator=torch.Generator().manual_seed(1))
    others = {
        "p_input_fdim": torch.tensor(BINS),
        "p_input_tdim": torch.tensor(FRAMES),
        "mask_embed": torch.ones(1, 1, WIDTH),
    }
    for name in ("cpredlayer", "gpredlayer"):
        for layer, rows in ((0, WIDTH), (2, 256)):
            others |= {f"{name}.{layer}.weight": torch.ones(rows, WIDTH), f"{name}.{layer}.bias": torch.ones(rows)}
    return {f"module.{name}": tensor for name, tensor in {**others, **{f"v.{k}": t for k, t in body.items()}}.items()}


@pytest.fixture
def ssast(tmp_path) -> Path:
    torch.save(ssast_weights(), tmp_path / "SSAST-Tiny-Patch-400.pth")
    return tmp_path / "SSAST-Tiny-Patch-400.pth"


def start(name: Path, **arguments) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    return build_model_and_extractor(ModelArguments(model_name_or_path=str(name), **arguments), LABELS)


def test_ssast_gives_the_outputs_of_its_formulas(ssast, input_values):
    model = load_original_checkpoint(ssast)
    assert type(model) is ASTModel and not model.training
    get = {name.removeprefix("module.v."): tensor for name, tensor in ssast_weights().items()}
    patches = embed_patches(get, input_values[:, None].transpose(2, 3)).flatten(2).transpose(1, 2)
    special = torch.cat((get["cls_token"], get["dist_token"]), dim=1).expand(2, -1, -1)
    assert_hidden_states(model, input_values, encode(get, torch.cat((special, patches), dim=1) + get["pos_embed"]))


def test_ssast_says_by_its_weights_what_it_was_trained_with(ssast):
    config = load_original_checkpoint(ssast).config
    geometry = (config.frequency_stride, config.time_stride, config.num_mel_bins, config.max_length)
    assert geometry == (16, 16, BINS, FRAMES)
    assert (config.num_hidden_layers, config.hidden_size, config.layer_norm_eps) == (DEPTH, WIDTH, 1e-6)
    with pytest.raises(ValueError, match="Expected 12 patches.*strides 16 and 8 give 22"):
        load_original_checkpoint(ssast, time_stride=8)


@pytest.mark.parametrize("is_converted", [False, True])
def test_a_recipe_gives_ssast_a_head_and_its_own_strides(ssast, tmp_path, is_converted, capsys):
    path = ssast
    if is_converted:
        path = tmp_path / "converted"
        convert([str(ssast), str(path)])
        assert "96 frames of 32 mel bins, strides 16 and 16; no head." in capsys.readouterr().out
    model, extractor = start(path)
    assert (model.config.id2label, model.classifier.dense.out_features) == (dict(enumerate(LABELS)), 3)
    assert (extractor.num_mel_bins, extractor.max_length, extractor.mean) == (BINS, FRAMES, -4.2677393)
    expected = load_original_checkpoint(ssast)
    assert all(
        torch.equal(tensor, expected.state_dict()[key]) for key, tensor in model.base_model.state_dict().items()
    )
    adapted, _ = start(path, frequency_stride=8, time_stride=10, max_length=56)
    assert (adapted.config.num_frequency_patches, adapted.config.num_time_patches) == (3, 5)
    expected.adapt_geometry(max_length=56, frequency_stride=8, time_stride=10)
    table = expected.embeddings.position_embeddings
    assert torch.equal(adapted.base_model.embeddings.position_embeddings, table)
    assert read_model_labels(str(path)) is None or is_converted  # nothing that `check` would compare


def test_converted_ssast_embeds_and_does_not_pretend_to_classify(ssast, tmp_path):
    convert([str(ssast), str(tmp_path / "ssast")])
    with pytest.raises(ModelError, match="weights are missing, such as classifier"):
        load_model(tmp_path / "ssast")
    assert audio_embedder(tmp_path / "ssast")(torch.zeros(8000).numpy()).vectors.shape == (1, WIDTH)
    with pytest.raises(ModelError, match="SSAST-Tiny-Patch-400.pth cannot be used: .*these weights have no head"):
        load_member(str(ssast), ModelArguments(), LABELS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "audioset"], "Expected no label names: these weights have no head"),
        (["--problem_type", "multi_label_classification"], "expected no --problem_type: these weights have no head"),
    ],
)
def test_options_of_a_head_are_refused_where_there_is_none(ssast, tmp_path, arguments, words):
    with pytest.raises(ModelError, match=words):
        convert([str(ssast), str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (ssast_weights(patch=(32, 2)), "Expected square patches, got 32 x 2 in .*: a frame model of SSAST"),
        ({"module.p_input_tdim": torch.tensor(64)}, "Expected 12 patches.*64 frames of 32 mel bins.*give 8"),
        ({"module.p_input_tdim": torch.tensor(float("inf"))}, "Expected a whole number p_input_tdim"),
        ({"module.p_input_fdim": torch.tensor([32, 32])}, "Expected a whole number p_input_fdim"),
        ({"module.p_input_fdim": torch.tensor(-1)}, "num_mel_bins"),
        ({"module.other": torch.zeros(1)}, "not used: other"),
        ({"module.number": torch.tensor(3)}, "expected tensors with axes, got the single number module.number"),
    ],
)
def test_another_ssast_is_refused_in_a_sentence(ssast, changes, words):
    torch.save({**ssast_weights(), **changes}, ssast)
    with pytest.raises((ValueError, StrictDataclassError), match=re.compile(words, re.DOTALL)):
        load_original_checkpoint(ssast)


def test_an_ssast_folder_of_the_hub_is_a_start_whatever_its_head(ssast, tmp_path):
    """As `Simon-Kotchou/ssast-tiny-patch-audioset-16-16`: an AST by its class, with a head that nothing trained."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    config = ASTConfig(**sizes, frequency_stride=16, time_stride=16, num_labels=527)
    published = ASTForAudioClassification(config)
    published.save_pretrained(tmp_path / "hub")
    ASTFeatureExtractor().save_pretrained(tmp_path / "hub")
    model, extractor = start(tmp_path / "hub", max_length=512)
    assert model.classifier.dense.out_features == 3 and extractor.max_length == 512
    assert (model.config.num_frequency_patches, model.config.num_time_patches) == (8, 32)
    published.adapt_geometry(max_length=512)
    assert_same(model.base_model, published.base_model)


# AudioMAE: time before frequency, one special token, and a decoder


@pytest.fixture
def audio_mae(tmp_path) -> Path:
    torch.save({"model": audio_mae_weights(), "epoch": 32, "args": Namespace(lr=1e-3)}, tmp_path / "pretrained.pth")
    return tmp_path / "pretrained.pth"


def audio_mae_weights() -> dict[str, torch.Tensor]:
    weights = timm_weights((BINS // 16) * (FRAMES // 16) - 1, num_channels=1)  # one special token less
    for name in ("dist_token", "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
        del weights[name]
    decoder = {"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 13, 8), "decoder_embed.weight": (8, WIDTH)}
    return weights | {name: torch.ones(shape) for name, shape in decoder.items()}


def test_audio_mae_starts_with_its_special_token_twice(audio_mae, input_values):
    get = audio_mae_weights()
    patches = embed_patches(get, input_values[:, None])  # (batch, width, time, frequency)
    tokens = patches.flatten(2).transpose(1, 2) + get["pos_embed"][:, 1:]
    special = (get["cls_token"] + get["pos_embed"][:, :1]).expand(2, 2, -1)
    hidden_states = encode(get, torch.cat((special, tokens), dim=1))
    # Ours are frequency-major.
    patches = hidden_states[:, 2:].unflatten(1, (FRAMES // 16, BINS // 16)).transpose(1, 2).flatten(1, 2)
    model = load_original_checkpoint(audio_mae, num_mel_bins=BINS, max_length=FRAMES)
    assert (model.config.frequency_stride, model.config.time_stride) == (16, 16)
    assert_hidden_states(model, input_values, torch.cat((hidden_states[:, :2], patches), dim=1))


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"num_mel_bins": BINS, "max_length": 64}, {}, "Expected 12 patches.*64 frames of 32 mel bins"),
        ({"num_mel_bins": 80}, {}, "number of patches that 5 rows divide .*got 12"),
        ({"num_mel_bins": BINS}, {"pos_embed": torch.zeros(13)}, "Expected cls_token and pos_embed"),
        ({"num_mel_bins": BINS}, {"pos_embed": torch.zeros(1, 0, WIDTH)}, "Expected cls_token and pos_embed"),
        ({}, {"patch_embed.proj.weight": torch.zeros(WIDTH, 1, 0, 0)}, "Expected square patches, got 0 x 0"),
        ({"num_mel_bins": BINS}, {"fc_norm.weight": torch.ones(WIDTH)}, "not used: fc_norm.weight"),
    ],
)
def test_another_audio_mae_is_refused_in_a_sentence(audio_mae, options, changes, words):
    torch.save({"model": audio_mae_weights() | changes}, audio_mae)
    with pytest.raises(ValueError, match=re.compile(words, re.DOTALL)):
        load_original_checkpoint(audio_mae, **options)
