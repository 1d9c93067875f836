"""Foreign weights land whole: the original's checkpoints and DeiT's in three layouts, or one clear error."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForAudioClassification, DeiTConfig, DeiTForImageClassificationWithTeacher

from modeling_ast import ASTConfig, ASTForAudioClassification, load_imagenet_checkpoint, load_original_checkpoint
from modeling_ast.conversion import checkpoint_layout, imagenet_sizes
from modeling_ast.layouts import strides_in_name
from modeling_ast.loading import load_trained
from modeling_ast.modeling_ast import adapt_position_embeddings

# A small network in timm's layout: two heads of 64 channels, and an MLP of a width that no rule would guess.
WIDTH, DEPTH, MLP = 128, 2, 96
# Spectrograms of 96 frames of 32 mel bins; strides 8 (frequency) and 12 (time) make a grid of 3 x 7 patches.
FRAMES, BINS, STRIDES, GRID = 96, 32, (8, 12), (3, 7)
IN_NAME = "audioset_8_12_0.4467.pth"


def timm_weights(num_patches: int, num_channels: int, width=WIDTH, depth=DEPTH, mlp=MLP) -> dict[str, torch.Tensor]:
    """A distilled DeiT of timm 0.4.5 with random weights, in the order and with the names of its files."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, num_patches + 2, width),
        "dist_token": (1, 1, width),
        "patch_embed.proj.weight": (width, num_channels, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    for layer in range(depth):
        for name, rows, columns in (
            ("norm1", width, None),
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("norm2", width, None),
            ("mlp.fc1", mlp, width),
            ("mlp.fc2", width, mlp),
        ):
            shapes[f"blocks.{layer}.{name}.weight"] = (rows,) if columns is None else (rows, columns)
            shapes[f"blocks.{layer}.{name}.bias"] = (rows,)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    for head in ("head", "head_dist"):
        shapes |= {f"{head}.weight": (10, width), f"{head}.bias": (10,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=generator) + ("norm" in name) for name, shape in shapes.items()}


def original_weights(num_labels: int = 5) -> dict[str, torch.Tensor]:
    """A checkpoint of the original with random weights, in the layout that it is released in."""
    generator = torch.Generator().manual_seed(1)
    head = {
        "mlp_head.0.weight": 1 + 0.1 * torch.randn(WIDTH, generator=generator),
        "mlp_head.0.bias": 0.1 * torch.randn(WIDTH, generator=generator),
        "mlp_head.1.weight": torch.randn(num_labels, WIDTH, generator=generator),
        "mlp_head.1.bias": torch.randn(num_labels, generator=generator),
    }
    body = {f"v.{name}": tensor for name, tensor in timm_weights(GRID[0] * GRID[1], num_channels=1).items()}
    return {f"module.{name}": tensor for name, tensor in {**body, **head}.items()}


def original_forward(
    weights: dict[str, torch.Tensor], input_values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled output and logits of the original, written out from its description."""
    get = {name.removeprefix("module.").removeprefix("v."): tensor for name, tensor in weights.items()}
    image = input_values[:, None].transpose(2, 3)  # (batch, 1, bins, frames)
    patches = F.conv2d(image, get["patch_embed.proj.weight"], get["patch_embed.proj.bias"], stride=STRIDES)
    tokens = [get[name].expand(len(patches), -1, -1) for name in ("cls_token", "dist_token")]
    hidden_states = encode(get, torch.cat((*tokens, patches.flatten(2).transpose(1, 2)), dim=1) + get["pos_embed"])
    pooled = hidden_states[:, :2].mean(dim=1)
    return pooled, classify(get, pooled, "mlp_head")


def encode(get: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Tokens with their positions through the blocks and the last norm of a Vision Transformer with timm's names."""

    def linear(x, name):
        return F.linear(x, get[f"{name}.weight"], get[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], get[f"{name}.weight"], get[f"{name}.bias"], 1e-6)

    batch, _, width = x.shape
    for block in (f"blocks.{layer}" for layer in range(DEPTH)):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").reshape(batch, -1, 3, width // 64, 64)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = (query @ key.transpose(2, 3) * 0.125).softmax(-1) @ value
        x = x + linear(attended.transpose(1, 2).reshape(batch, -1, width), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")


def classify(get: dict[str, torch.Tensor], pooled: torch.Tensor, head: str) -> torch.Tensor:
    """A layer norm and a linear layer."""
    normed = F.layer_norm(pooled, pooled.shape[-1:], get[f"{head}.0.weight"], get[f"{head}.0.bias"], 1e-5)
    return F.linear(normed, get[f"{head}.1.weight"], get[f"{head}.1.bias"])


@torch.no_grad()
def pooled_and_logits(
    model: ASTForAudioClassification, input_values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return model.audio_spectrogram_transformer(input_values).pooler_output, model(input_values).logits


def assert_equals_the_original(actual: torch.Tensor, expected: torch.Tensor | np.ndarray) -> None:
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, atol=2e-6 * max(1.0, expected.abs().max().item()), rtol=0)


@pytest.fixture
def original(tmp_path) -> Path:
    torch.save(original_weights(), tmp_path / IN_NAME)
    return tmp_path / IN_NAME


def load(path: Path, **options) -> ASTForAudioClassification:
    return load_original_checkpoint(path, **{"num_mel_bins": BINS, "max_length": FRAMES, **options})


# Checkpoints of the original


def test_reference_checkpoint_gives_the_original_outputs(reference):
    model = load_original_checkpoint(reference / "original_tiny224_f10_t10_1024.pth")
    config, expected = model.config, np.load(reference / "original_tiny224_f10_t10_1024.npz")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (192, 2, 3)
    assert (config.frequency_stride, config.time_stride, config.max_length, config.num_labels) == (10, 10, 1024, 527)
    pooled, logits = pooled_and_logits(model, torch.from_numpy(expected["input"]))
    assert_equals_the_original(pooled, expected["pooled"])
    assert_equals_the_original(logits, expected["logits"])


def test_generated_checkpoint_gives_the_outputs_of_the_formulas(original):
    model = load(original)
    assert not model.training
    input_values = torch.randn(3, FRAMES, BINS, generator=torch.Generator().manual_seed(2))
    actual, expected = pooled_and_logits(model, input_values), original_forward(original_weights(), input_values)
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)  # another order of sums than the model's


def test_sizes_are_read_from_the_weights(original):
    config = load(original).config
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == (WIDTH, DEPTH, 2, MLP)
    assert (config.num_labels, config.layer_norm_eps, config.head_layer_norm_eps) == (5, 1e-6, 1e-5)


def test_prefix_of_data_parallel_training_makes_no_difference(original, tmp_path):
    bare = {name.removeprefix("module."): tensor for name, tensor in original_weights().items()}
    torch.save(bare, tmp_path / "bare_8_12_.pth")
    assert_same_weights(load(tmp_path / "bare_8_12_.pth"), load(original))


@pytest.mark.parametrize(
    "name", [IN_NAME, "speechcommands_8_12_0.9812.pth", "original_tiny224_f8_t12_96.pth", "best_f8_t12_.pth"]
)
def test_strides_are_read_from_the_file_name(original, name):
    config = load(original.rename(original.with_name(name))).config
    assert (config.frequency_stride, config.time_stride) == STRIDES


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("audioset_12_14_0.4467.pth", (12, 14)),
        ("run_2024_11_tiny224_f10_t16_1024.pth", (10, 16)),
        ("best_audio_model.pth", None),
        ("audio_model_2024_5000_.pth", None),
    ],
)
def test_strides_are_the_last_plausible_pair_of_a_name(name, strides):
    assert strides_in_name(name) == strides


def test_strides_that_are_given_win_over_the_file_name(original):
    path = original.rename(original.with_name("audioset_10_10_0.4593.pth"))
    config = load(path, frequency_stride=8, time_stride=12).config
    assert (config.frequency_stride, config.time_stride) == STRIDES


@pytest.mark.parametrize("options", [{}, {"frequency_stride": 8}, {"time_stride": 12}])
def test_unknown_strides_are_an_error(original, options):
    path = original.rename(original.with_name("best_audio_model.pth"))
    with pytest.raises(ValueError, match="strides in the file name.*or as arguments, got 'best_audio_model.pth'"):
        load(path, **options)


def test_length_is_found_from_the_number_of_patches(original, reference):
    # 7 patches at stride 12 are 88 to 99 frames: none of the original's lengths, so the shortest.
    assert load(original, max_length=None).config.max_length == 88
    model = load_original_checkpoint(reference / "original_tiny224_f10_t10_1024.pth", max_length=None)
    assert model.config.max_length == 1024


def test_label_names_are_taken_over(original):
    id2label = dict(enumerate(["dog", "rain", "sea", "baby", "clock"]))
    config = load(original, id2label=id2label).config
    assert config.id2label == id2label
    assert config.label2id == {name: index for index, name in id2label.items()}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_length": 200}, "Expected 21 patches.*200 frames of 32 mel bins with strides 8 and 12 give 48"),
        ({"num_mel_bins": 128}, "Expected 21 patches.*128 mel bins"),
        ({"num_mel_bins": 48, "max_length": None}, "number of patches that 5 rows divide.*got 21"),
        ({"time_stride": 10}, "Expected 21 patches.*strides 8 and 10 give 27"),
        ({"id2label": {0: "dog", 1: "cat"}}, "Expected 5 label names.*got 2"),
    ],
)
def test_options_that_do_not_fit_the_weights_are_an_error(original, options, words):
    with pytest.raises(ValueError, match=words):
        load(original, **options)


@pytest.mark.parametrize("key", ["module.v.blocks.0.attn.gate", "module.v.head_extra.weight", "epoch", "module.alpha"])
def test_unexplained_key_is_an_error_that_names_it(original, key):
    torch.save({**original_weights(), key: torch.zeros(1)}, original)
    with pytest.raises(ValueError, match=f"not used: {key.removeprefix('module.').removeprefix('v.')}"):
        load(original)


@pytest.mark.parametrize(
    "key, named",
    [
        ("v.cls_token", "cls_token"),
        ("v.dist_token", "distillation_token"),
        ("v.pos_embed", "embeddings.position_embeddings"),
        ("v.patch_embed.proj.bias", "patch_embeddings.projection.bias"),
        ("v.norm.weight", "audio_spectrogram_transformer.layernorm.weight"),
        ("v.blocks.1.attn.qkv.weight", "encoder.layer.1.attention.attention.key.weight"),
        ("v.blocks.0.mlp.fc2.bias", "encoder.layer.0.output.dense.bias"),
        ("mlp_head.0.weight", "classifier.layernorm.weight"),
        ("mlp_head.1.weight", "classifier.dense.weight"),
    ],
)
def test_missing_key_is_an_error_that_names_it(original, key, named):
    weights = original_weights()
    del weights[f"module.{key}"]
    torch.save(weights, original)
    with pytest.raises(ValueError, match=named):
        load(original)


class Payload:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pth", "bin"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("dump", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickle_that_runs_code_is_refused_and_not_run(tmp_path, dump, suffix):
    path, trace = tmp_path / f"audioset_8_12_evil.{suffix}", tmp_path / "trace"
    dump({**original_weights(), "module.v.evil": Payload(trace)}, path)
    for read in (load, lambda path: load_imagenet_checkpoint(path, imagenet_config())):
        with pytest.raises(ValueError, match=f"{path.name}.*(cannot|can) be read safely"):
            read(path)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()  # the payload would have worked


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a weight file"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "not a weight file"),
        ([1, 2, 3], "expected a dictionary of tensors, got list"),
        ({"epoch": 3}, "expected a dictionary of tensors"),
        ({}, "Expected a checkpoint of the original"),
        ({"cls_token": torch.zeros(1)}, "Expected a checkpoint of the original.*cls_token"),
    ],
)
def test_what_is_no_checkpoint_is_an_error_with_its_path(tmp_path, content, words):
    path = tmp_path / IN_NAME
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=words) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("share", [0.99, 0.5, 0.01])
def test_truncated_checkpoint_is_an_error_with_its_path(original, share):
    content = original.read_bytes()
    original.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{IN_NAME}: not a weight file that can be read"):
        load(original)


def test_missing_checkpoint_is_an_error_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{IN_NAME}: no such file"):
        load(tmp_path / IN_NAME)


# ImageNet weights

SIDE = 4  # of the grid of the images, 64 x 64 pixels
IMAGE_WEIGHTS = {"num_patches": SIDE * SIDE, "num_channels": 3}


def imagenet_config(**overrides) -> ASTConfig:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": MLP}
    geometry = {"max_length": FRAMES, "num_mel_bins": BINS, "frequency_stride": STRIDES[0], "time_stride": STRIDES[1]}
    return ASTConfig(**{**sizes, **geometry, "num_labels": 5, **overrides})


def write_deit_release(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save({"model": weights}, folder / "deit.pth")
    return folder / "deit.pth"


def write_timm_file(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(weights, folder / "timm.safetensors")
    return folder / "timm.safetensors"


def write_timm_folder(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    (folder / "timm").mkdir()
    save_file(weights, folder / "timm" / "model.safetensors")
    return folder / "timm"


def write_transformers_folder(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    """Transformers' own DeiT with the same weights, saved by itself."""
    model = DeiTForImageClassificationWithTeacher(
        DeiTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=2,
            intermediate_size=MLP,
            image_size=16 * SIDE,
            num_labels=10,
        )
    )
    renamed = {
        "deit.embeddings.cls_token": weights["cls_token"],
        "deit.embeddings.distillation_token": weights["dist_token"],
        "deit.embeddings.position_embeddings": weights["pos_embed"],
    }
    for kind in ("weight", "bias"):
        names = {
            "deit.embeddings.patch_embeddings.projection": "patch_embed.proj",
            "deit.layernorm": "norm",
            "cls_classifier": "head",
            "distillation_classifier": "head_dist",
        }
        for layer in range(DEPTH):
            ours, theirs = f"deit.layers.{layer}", f"blocks.{layer}"
            names |= {
                f"{ours}.layernorm_before": f"{theirs}.norm1",
                f"{ours}.attention.o_proj": f"{theirs}.attn.proj",
                f"{ours}.layernorm_after": f"{theirs}.norm2",
                f"{ours}.mlp.fc1": f"{theirs}.mlp.fc1",
                f"{ours}.mlp.fc2": f"{theirs}.mlp.fc2",
            }
            query, key, value = weights[f"{theirs}.attn.qkv.{kind}"].split(WIDTH)
            for name, tensor in (("q", query), ("k", key), ("v", value)):
                renamed[f"{ours}.attention.{name}_proj.{kind}"] = tensor
        renamed |= {f"{new}.{kind}": weights[f"{old}.{kind}"] for new, old in names.items()}
    model.load_state_dict(renamed)
    model.save_pretrained(folder / "transformers")
    return folder / "transformers"


def assert_same_weights(actual: ASTForAudioClassification, expected: ASTForAudioClassification) -> None:
    assert actual.config.to_dict() == expected.config.to_dict()
    torch.testing.assert_close(actual.state_dict(), expected.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("case", range(5))
def test_imagenet_weights_are_adapted_as_in_the_original(reference, case):
    expected = np.load(reference / "imagenet_adaptation.npz")
    frequency_stride, time_stride, num_mel_bins, max_length = map(int, expected[f"case{case}_shape"])
    config = ASTConfig.from_size(
        "tiny224",
        num_hidden_layers=2,
        frequency_stride=frequency_stride,
        time_stride=time_stride,
        num_mel_bins=num_mel_bins,
        max_length=max_length,
    )
    model = load_imagenet_checkpoint(reference / "deit_tiny_distilled_patch16_224.pth", config)
    table = model.audio_spectrogram_transformer.embeddings.position_embeddings
    np.testing.assert_allclose(table.detach(), expected[f"case{case}_pos_embed"], atol=1e-6, rtol=0)
    pooled, _ = pooled_and_logits(model, torch.from_numpy(expected[f"case{case}_input"]).float())
    np.testing.assert_allclose(pooled, expected[f"case{case}_pooled"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "write",
    [write_deit_release, write_timm_file, write_timm_folder, write_transformers_folder],
    ids=lambda f: f.__name__,
)
def test_every_layout_of_imagenet_weights_gives_the_same_model(tmp_path, write):
    weights = timm_weights(**IMAGE_WEIGHTS)
    path = write(weights, tmp_path)
    model = load_imagenet_checkpoint(path, imagenet_config())
    assert not model.training
    assert imagenet_sizes(path).items() <= model.config.to_dict().items()
    # The body, put together here from the same numbers: as the original's checkpoint it must give the same model.
    grid = weights["pos_embed"][:, 2:].transpose(1, 2).reshape(1, WIDTH, SIDE, SIDE)
    grid = F.interpolate(grid, size=(SIDE, GRID[1]), mode="bilinear")[:, :, 1:4]  # rows 4 // 2 - 3 // 2 onwards
    body = {
        **weights,
        "pos_embed": torch.cat((weights["pos_embed"][:, :2], grid.flatten(2).transpose(1, 2)), dim=1),
        "patch_embed.proj.weight": weights["patch_embed.proj.weight"].sum(dim=1, keepdim=True),
    }
    head = {key: tensor for key, tensor in original_weights().items() if "mlp_head" in key}
    torch.save({**{f"module.v.{key}": tensor for key, tensor in body.items()}, **head}, tmp_path / IN_NAME)
    expected = load(tmp_path / IN_NAME)
    torch.testing.assert_close(
        model.audio_spectrogram_transformer.state_dict(), expected.audio_spectrogram_transformer.state_dict()
    )


def test_head_on_imagenet_weights_is_fresh(tmp_path):
    path = write_deit_release(timm_weights(**IMAGE_WEIGHTS), tmp_path)
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load_imagenet_checkpoint(path, imagenet_config(num_labels=10)).classifier.dense.weight)
    assert heads[0].shape == (10, WIDTH)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_weights_without_distillation_token_are_an_error(tmp_path, prefix):
    weights = timm_weights(SIDE * SIDE - 1, num_channels=3)
    del weights["dist_token"]
    path = write_timm_file({prefix + key: tensor for key, tensor in weights.items()}, tmp_path)
    with pytest.raises(ValueError, match="Expected weights of a distilled DeiT.*timm.safetensors"):
        load_imagenet_checkpoint(path, imagenet_config())


def test_config_of_another_width_is_an_error_with_both_shapes(tmp_path):
    path = write_deit_release(timm_weights(**IMAGE_WEIGHTS), tmp_path)
    with pytest.raises(ValueError, match=r"cls_token: expected shape \(1, 1, 64\), got \(1, 1, 128\)"):
        load_imagenet_checkpoint(path, imagenet_config(hidden_size=64))
    with pytest.raises(
        ValueError, match=r"projection.weight: expected shape \(128, 1, 8, 8\), got \(128, 1, 16, 16\)"
    ):
        load_imagenet_checkpoint(path, imagenet_config(patch_size=8))


@pytest.mark.parametrize("depth, words", [(1, "not used: .*encoder.layer.1."), (3, "not found: .*encoder.layer.2.")])
def test_config_of_another_depth_is_an_error_that_names_the_layer(tmp_path, depth, words):
    path = write_deit_release(timm_weights(**IMAGE_WEIGHTS), tmp_path)
    with pytest.raises(ValueError, match=words):
        load_imagenet_checkpoint(path, imagenet_config(num_hidden_layers=depth))


def test_unexplained_key_of_imagenet_weights_is_an_error_that_names_it(tmp_path):
    path = write_deit_release({**timm_weights(**IMAGE_WEIGHTS), "blocks.0.ls1.gamma": torch.ones(WIDTH)}, tmp_path)
    with pytest.raises(ValueError, match="not used: blocks.0.ls1.gamma"):
        load_imagenet_checkpoint(path, imagenet_config())


def test_position_table_of_no_square_image_is_an_error(tmp_path):
    path = write_deit_release(timm_weights(num_patches=15, num_channels=3), tmp_path)
    with pytest.raises(ValueError, match="position embeddings"):
        load_imagenet_checkpoint(path, imagenet_config())


def test_imagenet_weights_without_position_table_are_an_error(tmp_path):
    weights = timm_weights(**IMAGE_WEIGHTS)
    del weights["pos_embed"]
    with pytest.raises(ValueError, match="embeddings.position_embeddings"):
        load_imagenet_checkpoint(write_deit_release(weights, tmp_path), imagenet_config())


def test_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="Expected model.safetensors or pytorch_model.bin in"):
        load_imagenet_checkpoint(tmp_path, imagenet_config())


@pytest.mark.parametrize("load", [imagenet_sizes, lambda name: load_imagenet_checkpoint(name, imagenet_config())])
def test_imagenet_weights_that_are_nowhere_are_an_error(load):
    with pytest.raises(OSError, match="nobody/nothing"):
        load("nobody/nothing")


def test_a_file_that_is_no_checkpoint_is_neither_the_originals_nor_a_deit(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth: no such file"):
        checkpoint_layout(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth: not a weight file that can be read safely"):
        checkpoint_layout(tmp_path / "text.pth")


def test_a_trained_model_that_is_broken_or_diverged_is_refused(tiny_model, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_trained(tmp_path / "nowhere")
    tiny_model.classifier.dense.bias.data[1] = float("inf")
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Expected finite numbers .* in 1 of .* such as classifier.dense.bias"):
        load_trained(tmp_path)
    (tmp_path / "model.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="header"):
        load_trained(tmp_path)


# AudioSet weights on another grid


def audioset_case(reference: Path, case: int) -> tuple[torch.Tensor, dict[str, int], torch.Tensor]:
    content = np.load(reference / "audioset_adaptation.npz")
    names = ("frequency_stride", "time_stride", "num_mel_bins", "max_length")
    geometry = dict(zip(names, map(int, content[f"case{case}_shape"])))
    return torch.from_numpy(content["source_pos_embed"]), geometry, torch.from_numpy(content[f"case{case}_pos_embed"])


@pytest.mark.parametrize("case", range(6))
def test_audioset_positions_are_adapted_as_in_the_original(reference, case):
    source, geometry, expected = audioset_case(reference, case)
    config = ASTConfig(**geometry)
    actual = adapt_position_embeddings(source, (12, 101), (config.num_frequency_patches, config.num_time_patches))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("auto_class", [ASTForAudioClassification, AutoModelForAudioClassification])
@pytest.mark.parametrize("case", range(6))
def test_from_pretrained_adapts_audioset_positions(reference, tmp_path, case, auto_class):
    source, geometry, expected = audioset_case(reference, case)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ASTForAudioClassification(ASTConfig(**sizes))
    model.audio_spectrogram_transformer.embeddings.position_embeddings.data.copy_(source)
    model.save_pretrained(tmp_path)
    adapted = auto_class.from_pretrained(tmp_path, **geometry)
    table = adapted.audio_spectrogram_transformer.embeddings.position_embeddings
    torch.testing.assert_close(table.detach(), expected, atol=1e-6, rtol=0)
    input_values = torch.zeros(1, geometry["max_length"], geometry["num_mel_bins"])
    assert adapted(input_values).logits.isfinite().all()
