"""A run starts from a size, an AST, the original's weights or DeiT's, with an output a label and fitting features."""

from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config, random_model
from test_conversion import DEPTH, IMAGE_WEIGHTS, MLP, WIDTH, original_weights, timm_weights, write_deit_release

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, load_original_checkpoint
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.loading import is_ast
from modeling_ast.training.building import build_feature_extractor, build_model

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ["cat", "dog", "rain"]
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def ast_folder(tmp_path) -> Path:
    """A trained AST with its feature extractor, as a run leaves them."""
    config = make_tiny_config(id2label=dict(enumerate(LABELS)), problem_type="single_label_classification")
    config.label2id = {name: index for index, name in config.id2label.items()}
    random_model(config).save_pretrained(tmp_path / "ast")
    ASTFeatureExtractor(8000, num_mel_bins=32, max_length=64, mean=-3.0, std=2.0).save_pretrained(tmp_path / "ast")
    return tmp_path / "ast"


@pytest.fixture
def original(tmp_path) -> Path:
    """The original's layout, with its 128 mel bins: 100 frames at strides of 16 are a grid of 8 x 6 patches."""
    positions = torch.randn(1, 48 + 2, WIDTH, generator=torch.Generator().manual_seed(2))
    torch.save(original_weights(len(LABELS)) | {"module.v.pos_embed": positions}, tmp_path / "tiny_16_16_best.pth")
    return tmp_path / "tiny_16_16_best.pth"


@pytest.fixture
def deit(tmp_path) -> Path:
    return write_deit_release(timm_weights(**IMAGE_WEIGHTS), tmp_path)


def start(name, labels=LABELS, **arguments) -> ASTForAudioClassification:
    return build_model(ModelArguments(model_name_or_path=str(name), **arguments), labels)


def assert_has_labels(model: ASTForAudioClassification, labels: list[str]) -> None:
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {name: index for index, name in enumerate(labels)}
    assert model.config.num_labels == model.num_labels == len(labels)
    config = model.config
    assert model(torch.zeros(1, config.max_length, config.num_mel_bins)).logits.shape == (1, len(labels))


def body(model: ASTForAudioClassification, without: str = "position_embeddings") -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if "classifier" not in key and without not in key}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert torch.equal(actual[key], expected[key]), key


# Sizes


def test_size_gives_random_weights_of_the_size_asked_for():
    geometry = {"max_length": 96, "num_mel_bins": 64, "frequency_stride": 16, "time_stride": 12}
    model = start("tiny224", **TINY, **geometry, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2)
    assert_has_labels(model, LABELS)
    for name, value in {**TINY, **geometry, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}.items():
        assert getattr(model.config, name) == value
    assert (model.config.layer_norm_eps, model.config.head_layer_norm_eps) == (1e-6, 1e-5)


def test_random_weights_follow_torchs_seed():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(start("tiny224", **TINY, max_length=96))
    assert_same(models[0].state_dict(), models[1].state_dict())
    assert not torch.equal(models[0].classifier.dense.weight, models[2].classifier.dense.weight)


@pytest.mark.parametrize(
    "keys, deviation",
    [({}, 192**-0.5), ({"hidden_size": 96, "num_attention_heads": 3}, 96**-0.5), ({"initializer_range": 0.02}, 0.02)],
    ids=["a size", "another width", "as the original"],
)
def test_random_weights_have_the_deviation_of_their_width_or_of_the_recipe(keys, deviation):
    model = start("tiny224", num_hidden_layers=1, max_length=96, **keys)
    assert model.config.initializer_range == deviation
    layer, embeddings = model.base_model.encoder.layer[0], model.base_model.embeddings
    for weights in (
        layer.attention.attention.query.weight,
        layer.output["dense"].weight,
        embeddings.position_embeddings,
    ):
        assert weights.std().item() == pytest.approx(deviation, rel=0.05)
    assert not layer.attention.attention.query.bias.any()


@pytest.mark.parametrize("source", ["ast_folder", "original", "deit"])
def test_the_deviation_of_weights_that_are_there_cannot_be_chosen(source, request):
    with pytest.raises(ValueError, match="Expected initializer_range 0.02, which the weights of .* have, got 0.1"):
        start(request.getfixturevalue(source), initializer_range=0.1)


@pytest.mark.parametrize("name, width", [("tiny224", 192), ("small224", 384), ("base224", 768), ("base384", 768)])
def test_size_alone_is_the_originals_network(name, width):
    with torch.device("meta"):
        config = start(name, num_hidden_layers=1).config
    assert (config.hidden_size, config.num_attention_heads, config.max_length) == (width, width // 64, 1024)


@pytest.mark.parametrize("source", ["tiny224", "ast_folder", "original", "deit"])
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_problem_type_and_attention_are_those_of_the_arguments(source, problem_type, request):
    name = source if source == "tiny224" else request.getfixturevalue(source)
    sizes = TINY if source == "tiny224" else {}
    model = start(name, problem_type=problem_type, attn_implementation="eager", **sizes)
    assert model.config.problem_type == problem_type
    assert model.config._attn_implementation == "eager"


# An AST


def test_same_labels_keep_the_head(ast_folder):
    expected = ASTForAudioClassification.from_pretrained(ast_folder)
    model = start(ast_folder)
    assert_has_labels(model, LABELS)
    assert_same(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("labels", [["cow", "hen"], ["cow", "dog", "rain"], [*LABELS, "sea"]])
def test_other_labels_get_a_fresh_head_and_keep_the_body(ast_folder, labels):
    expected = ASTForAudioClassification.from_pretrained(ast_folder)
    model = start(ast_folder, labels)
    assert_has_labels(model, labels)
    assert_same(body(model, without="nothing"), body(expected, without="nothing"))
    bound = model.config.hidden_size**-0.5  # of fresh weights, which are uniform
    assert model.classifier.dense.weight.abs().max() <= bound < expected.classifier.dense.weight.abs().max()
    assert torch.equal(model.classifier.layernorm.weight, torch.ones(32))


def test_same_labels_in_another_order_keep_the_head_in_that_order(ast_folder):
    inputs = torch.randn(1, 64, 32)
    expected, model = start(ast_folder), start(ast_folder, LABELS[::-1])
    assert_has_labels(model, LABELS[::-1])
    torch.testing.assert_close(model(inputs).logits, expected(inputs).logits.flip(1))


def test_evaluation_refuses_a_head_that_would_be_fresh(ast_folder):
    arguments = ModelArguments(model_name_or_path=str(ast_folder))
    build_model(arguments, LABELS, allow_fresh_head=False)
    for labels, name in ((["cow", "hen"], str(ast_folder)), (LABELS, "tiny224")):
        with pytest.raises(ValueError, match="expected"):
            build_model(ModelArguments(model_name_or_path=name), labels, allow_fresh_head=False)


def test_strides_of_the_arguments_serve_where_a_name_has_none(original, tmp_path):
    nameless = tmp_path / "best.pth"
    nameless.write_bytes(original.read_bytes())
    with pytest.raises(ValueError, match="strides"):
        start(nameless)
    config = start(original).config
    strides = {"frequency_stride": config.frequency_stride, "time_stride": config.time_stride}
    assert_same(body(start(nameless, **strides)), body(start(original)))


def test_other_geometry_is_adapted(ast_folder):
    expected = ASTForAudioClassification.from_pretrained(ast_folder, max_length=104, time_stride=8)
    model = start(ast_folder, max_length=104, time_stride=8)
    assert (model.config.max_length, model.config.time_stride) == (104, 8)
    assert_has_labels(model, LABELS)
    assert_same(model.state_dict(), expected.state_dict())


def test_dropout_can_be_set_on_an_ast(ast_folder):
    assert start(ast_folder, hidden_dropout_prob=0.3).config.hidden_dropout_prob == 0.3


# The original's checkpoints


def test_original_checkpoint_brings_its_weights_and_gets_its_labels(original):
    expected = load_original_checkpoint(original)
    model = start(original)
    assert_has_labels(model, LABELS)
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.max_length) == (WIDTH, DEPTH, 100)
    assert_same(body(model, without="nothing"), body(expected, without="nothing"))


def test_original_checkpoint_is_adapted_to_another_geometry(original):
    model = start(original, ["cow", "hen"], max_length=176, frequency_stride=8)
    assert_has_labels(model, ["cow", "hen"])
    assert (model.config.num_frequency_patches, model.config.num_time_patches) == (15, 11)
    assert_same(body(model), body(load_original_checkpoint(original)))


def test_original_checkpoint_says_dropout_where_it_is_asked_for(original):
    model = start(original, hidden_dropout_prob=0.3)
    assert model.config.hidden_dropout_prob == 0.3
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)].count(0.3) > 0


# DeiT


def test_deit_weights_bring_the_body_and_its_sizes(deit):
    model = start(deit, max_length=96, frequency_stride=16, time_stride=16, hidden_dropout_prob=0.1)
    assert_has_labels(model, LABELS)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (WIDTH, DEPTH, MLP)
    assert (config.num_mel_bins, config.max_length, config.hidden_dropout_prob) == (128, 96, 0.1)
    assert (config.layer_norm_eps, config.head_layer_norm_eps) == (1e-6, 1e-5)
    weights, encoder = timm_weights(**IMAGE_WEIGHTS), model.audio_spectrogram_transformer
    assert torch.equal(encoder.embeddings.cls_token, weights["cls_token"])
    assert torch.equal(encoder.encoder.layer[1].output.dense.weight, weights["blocks.1.mlp.fc2.weight"])
    kernel = encoder.embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(kernel, weights["patch_embed.proj.weight"].sum(1, keepdim=True))


# What is refused


@pytest.mark.parametrize("source", ["ast_folder", "original", "deit"])
@pytest.mark.parametrize("name", TINY)
def test_other_sizes_than_the_weights_have_are_refused(source, name, request):
    path = request.getfixturevalue(source)
    with pytest.raises(ValueError, match=f"Expected {name} .*, which the weights of .*{path.name} have, got 97"):
        start(path, **{name: 97})


@pytest.mark.parametrize("source", ["ast_folder", "original", "deit"])
def test_the_sizes_that_the_weights_have_may_be_said(source, request):
    path = request.getfixturevalue(source)
    assert start(path, hidden_size=start(path).config.hidden_size).config.hidden_size


@pytest.mark.parametrize("name", ["weights.txt", "empty"])
def test_what_holds_no_weights_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("weights.txt").write_text("none")
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=name):
        start(name)


def test_repository_that_cannot_be_had_is_an_os_error():
    with pytest.raises(OSError):
        start("nowhere/at-all")


# The feature extractor


def test_an_ast_is_told_from_other_weights(ast_folder, original, deit):
    assert is_ast(str(ast_folder))
    assert not any(is_ast(str(name)) for name in ("tiny224", original, deit))


def extractor_of(name, **arguments) -> ASTFeatureExtractor:
    arguments = ModelArguments(model_name_or_path=str(name), **arguments)
    return build_feature_extractor(arguments, build_model(arguments, LABELS).config)


def test_statistics_and_rate_come_from_the_checkpoint(ast_folder):
    extractor = extractor_of(ast_folder)
    assert (extractor.mean, extractor.std, extractor.sampling_rate) == (-3.0, 2.0, 8000)
    assert (extractor.max_length, extractor.num_mel_bins) == (64, 32)


def test_what_the_arguments_give_wins_over_the_checkpoint(ast_folder):
    extractor = extractor_of(ast_folder, mean=-9.0, std=7.0, sampling_rate=22050, max_length=104)
    assert (extractor.mean, extractor.std, extractor.sampling_rate) == (-9.0, 7.0, 22050)
    assert (extractor.max_length, extractor.num_mel_bins) == (104, 32)
    assert extractor_of(ast_folder, mean=0.0).mean == 0.0  # a zero is given too


@pytest.mark.parametrize("source", ["tiny224", "original", "deit"])
def test_without_a_feature_extractor_statistics_are_audiosets(source, request):
    name, sizes = (source, TINY) if source == "tiny224" else (request.getfixturevalue(source), {})
    extractor = extractor_of(name, max_length=96, **sizes)
    assert (extractor.mean, extractor.std, extractor.sampling_rate) == (-4.2677393, 4.5689974, 16000)
    assert (extractor.max_length, extractor.num_mel_bins) == (96, 128)
    assert extractor_of(name, mean=-9.0, max_length=96, **sizes).mean == -9.0


def test_ast_without_a_feature_extractor_gets_audiosets_statistics(ast_folder):
    (ast_folder / "preprocessor_config.json").unlink()
    assert extractor_of(ast_folder).mean == -4.2677393
