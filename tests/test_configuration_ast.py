"""The configuration: Transformers' own keys, the geometry that follows from them, and what is refused."""

import dataclasses
import re

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTConfig, ASTForAudioClassification, ASTModel

UNUSUAL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "initializer_range": 0.03,
    "layer_norm_eps": 1e-7,
    "patch_size": 8,
    "qkv_bias": False,
    "frequency_stride": 7,
    "time_stride": 9,
    "max_length": 77,
    "num_mel_bins": 40,
    "problem_type": "multi_label_classification",
    "id2label": {0: "rain", 1: "dog", 2: "clock"},
    "label2id": {"rain": 0, "dog": 1, "clock": 2},
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(transformers.ASTConfig)])
def test_every_stock_field_is_here_with_the_same_default(field):
    assert getattr(ASTConfig(), field) == getattr(transformers.ASTConfig(), field)


def test_model_type_is_stocks():
    assert ASTConfig.model_type == transformers.ASTConfig.model_type


# What Transformers' own AST does not know.
OWN_KEYS = {"head_layer_norm_eps", "thresholds", "patchout_rows", "patchout_columns", "patchout_patches"}
OWN_KEYS |= {"drop_path_rate", "unknown_threshold"}


def test_only_our_own_keys_are_added_to_the_file():
    ours, stock = ASTConfig(head_layer_norm_eps=1e-5).to_diff_dict(), transformers.ASTConfig().to_diff_dict()
    assert ours.keys() - stock.keys() == OWN_KEYS and stock.keys() <= ours.keys()


@pytest.mark.parametrize("options", [{}, UNUSUAL], ids=["defaults", "every key changed"])
def test_a_stock_config_json_loads_unchanged(tmp_path, options):
    transformers.ASTConfig(**options).save_pretrained(tmp_path)
    loaded, stock = ASTConfig.from_pretrained(tmp_path).to_dict(), transformers.ASTConfig.from_pretrained(tmp_path)
    assert not any(loaded.pop(key) for key in OWN_KEYS)  # off
    assert loaded == stock.to_dict()


@pytest.mark.parametrize("options", [{}, UNUSUAL], ids=["defaults", "every key changed"])
def test_our_config_json_loads_in_stock_and_survives_it(tmp_path, options):
    config = ASTConfig(**options, head_layer_norm_eps=1e-5, thresholds={"rain": 0.1 + 0.2, "dog": 1})
    config.save_pretrained(tmp_path / "ours")
    stock = transformers.ASTConfig.from_pretrained(tmp_path / "ours")
    assert {key: getattr(stock, key) for key in options} == options
    stock.save_pretrained(tmp_path / "stock")
    assert ASTConfig.from_pretrained(tmp_path / "stock").thresholds == {"rain": 0.1 + 0.2, "dog": 1}
    assert (
        ASTConfig.from_pretrained(tmp_path / "stock").to_dict()
        == ASTConfig.from_pretrained(tmp_path / "ours").to_dict()
    )


@pytest.mark.parametrize(
    ("size", "num_parameters"),
    # Counted in the original's networks with 527 classes and strides of 10, without their dead ImageNet heads.
    [("tiny224", 5_723_663), ("small224", 22_063_631), ("base224", 86_594_063), ("base384", 86_594_063)],
)
def test_sizes_have_the_originals_number_of_parameters(size, num_parameters):
    with torch.device("meta"):
        model = ASTForAudioClassification(ASTConfig.from_size(size, num_labels=527))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_sizes_have_the_originals_epsilons():
    config = ASTConfig.from_size("tiny224")
    assert (config.layer_norm_eps, config.head_layer_norm_eps) == (1e-6, 1e-5)


def test_overrides_win_over_the_size():
    config = ASTConfig.from_size("tiny224", layer_norm_eps=1e-12, num_hidden_layers=2, max_length=128)
    assert (config.layer_norm_eps, config.num_hidden_layers, config.max_length) == (1e-12, 2, 128)


def test_unknown_size_is_refused_by_naming_the_four():
    with pytest.raises(ValueError, match="tiny224, small224, base224, base384, got 'huge'"):
        ASTConfig.from_size("huge")


@pytest.mark.parametrize(
    ("max_length", "stride", "grid"),
    [
        (1024, 10, (12, 101)),
        (1024, 12, (10, 85)),
        (1024, 14, (9, 73)),
        (1024, 16, (8, 64)),
        (512, 10, (12, 50)),
        (128, 10, (12, 12)),
        (100, 10, (12, 9)),
    ],
)
def test_patch_grid_follows_from_length_and_stride(max_length, stride, grid):
    config = ASTConfig(max_length=max_length, frequency_stride=stride, time_stride=stride)
    assert (config.num_frequency_patches, config.num_time_patches) == grid
    assert config.num_patches == grid[0] * grid[1]
    assert config.num_tokens == grid[0] * grid[1] + 2


def test_default_geometry_has_1214_tokens():
    assert ASTConfig().num_tokens == 1214


def test_each_axis_follows_its_own_sizes():
    config = ASTConfig(num_mel_bins=64, max_length=48, patch_size=8, frequency_stride=4, time_stride=5)
    assert (config.num_frequency_patches, config.num_time_patches) == (15, 9)


GEOMETRY = ["num_frequency_patches", "num_time_patches", "num_patches", "num_tokens"]


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_cannot_be_set(name):
    with pytest.raises(AttributeError):
        setattr(ASTConfig(), name, 3)


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_not_written_to_the_file(name):
    assert name not in ASTConfig().to_dict()


# Option, the words that say what was expected, and the words that say what came.
IMPOSSIBLE = [
    ({"hidden_size": 30}, "divide hidden_size", "12 heads for a width of 30"),
    ({"hidden_size": 0}, "hidden_size of at least 1", "got 0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers of at least 1", "got 0"),
    ({"num_attention_heads": 0}, "num_attention_heads of at least 1", "got 0"),
    ({"num_attention_heads": 5}, "divide hidden_size", "5 heads"),
    ({"intermediate_size": -1}, "intermediate_size of at least 1", "got -1"),
    ({"patch_size": 0}, "patch_size of at least 1", "got 0"),
    ({"patch_size": (16, 16)}, "expected int", "got tuple"),
    ({"frequency_stride": 0}, "frequency_stride of at least 1", "got 0"),
    ({"time_stride": -10}, "time_stride of at least 1", "got -10"),
    ({"max_length": 15}, r"max_length of at least one patch \(16 frames\)", "got 15"),
    ({"num_mel_bins": 8}, r"num_mel_bins of at least one patch \(16 mel bins\)", "got 8"),
    ({"max_length": 16, "patch_size": 17}, r"max_length of at least one patch \(17 frames\)", "got 16"),
    ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob in \[0, 1\)", "got 1.0"),
    ({"attention_probs_dropout_prob": -0.1}, r"attention_probs_dropout_prob in \[0, 1\)", "got -0.1"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps above 0", "got 0.0"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps above 0", "got nan"),
    ({"head_layer_norm_eps": -1e-5}, "head_layer_norm_eps above 0", "got -1e-05"),
    ({"initializer_range": 0.0}, "initializer_range above 0", "got 0.0"),
    ({"max_length": "1024"}, "expected int", "got str"),
    ({"qkv_bias": "no"}, "expected bool", "got str"),
    ({"hidden_act": "gleu"}, "hidden_act", "gleu"),
    ({"thresholds": {"dog": 0.5, "rain": 1.5}}, r"thresholds in \[0, 1\]", "got 1.5 for rain"),
    ({"thresholds": {"dog": float("nan")}}, r"thresholds in \[0, 1\]", "got nan for dog"),
    ({"thresholds": {"dog": "high"}}, "dict", "high"),
    ({"thresholds": [0.5]}, "expected a dict", "got list"),
    ({"unknown_threshold": 0.0}, "unknown_threshold above 0", "got 0.0"),
    ({"unknown_threshold": float("nan")}, "unknown_threshold above 0", "got nan"),
    ({"problem_type": "multilabel"}, "problem_type out of .*multi_label_classification", "got 'multilabel'"),
]
IMPOSSIBLE_IDS = [", ".join(f"{key}={value!r}" for key, value in options.items()) for options, *_ in IMPOSSIBLE]


@pytest.mark.parametrize(("options", "expected", "got"), IMPOSSIBLE, ids=IMPOSSIBLE_IDS)
def test_impossible_values_are_refused_at_construction(options, expected, got):
    with pytest.raises(StrictDataclassError, match=f"(?s){expected}.*{got}"):
        ASTConfig(**options)


BAD_OVERRIDES = [
    ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob in \[0, 1\), got 1.5"),
    ({"num_attention_heads": 5}, "divide hidden_size, got 5 heads for a width of 32"),
    ({"layer_norm_eps": -1.0}, "layer_norm_eps above 0, got -1.0"),
    ({"max_length": 4}, r"max_length of at least one patch \(16 frames\), got 4"),
    ({"num_mel_bins": 15}, r"num_mel_bins of at least one patch \(16 mel bins\), got 15"),
    ({"time_stride": 0}, "time_stride of at least 1, got 0"),
]


@pytest.mark.parametrize(("override", "words"), BAD_OVERRIDES, ids=[next(iter(o)) for o, _ in BAD_OVERRIDES])
@pytest.mark.parametrize("loader", [ASTForAudioClassification, ASTModel, transformers.AutoModelForAudioClassification])
def test_impossible_overrides_at_loading_are_refused(tmp_path, tiny_model, loader, override, words):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=words):
        loader.from_pretrained(tmp_path, **override)


def test_impossible_values_set_later_are_refused_when_a_model_is_built(tiny_config):
    tiny_config.time_stride = 0
    with pytest.raises(StrictDataclassError, match="time_stride of at least 1, got 0"):
        ASTForAudioClassification(tiny_config)


def test_labels_that_were_taken_away_are_missed_when_a_model_is_built(tiny_config):
    tiny_config.id2label = {}
    with pytest.raises(StrictDataclassError, match="num_labels of at least 1, got 0"):
        ASTForAudioClassification(tiny_config)


@pytest.mark.parametrize("plan", ["base_model_fsdp_plan", "base_model_tp_plan"])
def test_plans_for_several_processes_name_our_modules(tiny_model, plan):
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in tiny_model.base_model.named_modules()}
    assert set(getattr(tiny_model.config, plan)) <= names
    assert plan not in tiny_model.config.to_dict()  # as Transformers' own: of the class, not of the folder
