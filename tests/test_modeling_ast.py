"""The network: equal to Transformers' own on the same weights, and what Transformers' own cannot do."""

import copy
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import random_model

from modeling_ast import ASTConfig, ASTForAudioClassification, ASTModel
from modeling_ast.modeling_ast import classification_loss

close = torch.testing.assert_close
pytestmark = pytest.mark.usefixtures("one_thread")


def with_attention(model, implementation):
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


# Parity with Transformers' own AST, on the same weights


@pytest.fixture
def twins(tiny_config, tmp_path):
    """Ours and Transformers' own with the same weights; eager, the only one in which stock gives its attention."""
    tiny_config.head_layer_norm_eps = None
    ours = random_model(tiny_config)
    ours.save_pretrained(tmp_path)
    stock = transformers.ASTForAudioClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    return with_attention(ours, "eager"), stock


@torch.no_grad()
def test_logits_equal_stock(twins, input_values):
    ours, stock = (model(input_values).logits for model in twins)
    assert ours.abs().max() > 0.5  # parity of zeros would be worth nothing
    close(ours, stock, atol=1e-6, rtol=0)


@torch.no_grad()
def test_hidden_states_equal_stock(twins, input_values):
    ours, stock = (model(input_values, output_hidden_states=True).hidden_states for model in twins)
    assert len(ours) == len(stock) == 3
    close(ours, stock, atol=1e-5, rtol=1e-6)


@torch.no_grad()
def test_attentions_equal_stock(twins, input_values):
    ours, stock = (model(input_values, output_attentions=True).attentions for model in twins)
    close(ours, stock, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["pooler_output", "last_hidden_state"])
def test_base_model_equals_stock(twins, input_values, name):
    ours, stock = (model.base_model(input_values)[name] for model in twins)
    close(ours, stock, atol=1e-5, rtol=1e-6)


@torch.no_grad()
def test_pooled_output_is_the_mean_of_the_two_special_tokens(tiny_model, input_values):
    output = tiny_model.base_model(input_values)
    close(output.pooler_output, output.last_hidden_state[:, :2].mean(dim=1))


@torch.no_grad()
def test_head_uses_its_own_epsilon(tiny_config, input_values):
    tiny_config.head_layer_norm_eps = 0.5
    model = random_model(tiny_config)
    norm, dense = model.classifier.layernorm, model.classifier.dense
    pooled = model.base_model(input_values).pooler_output
    close(model(input_values).logits, dense(F.layer_norm(pooled, (32,), norm.weight, norm.bias, eps=0.5)))


# Invariance


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch(tiny_model, input_values):
    alone = torch.cat([tiny_model(clip[None]).logits for clip in input_values])
    close(tiny_model(input_values).logits, alone, atol=2e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_logits_do_not_depend_on_the_attention_implementation(tiny_model, input_values, implementation):
    eager = with_attention(tiny_model, "eager")(input_values).logits
    close(with_attention(tiny_model, implementation)(input_values).logits, eager, atol=2e-6, rtol=1e-5)


def test_gradients_do_not_depend_on_the_attention_implementation(tiny_model, input_values):
    gradients = []
    for implementation in ("eager", "sdpa"):
        model = with_attention(tiny_model, implementation)
        model(input_values, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    close(*gradients, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")],
        ),
    ],
)
def test_compiled_whole_model_equals_eager(tiny_model, input_values, backend):
    torch.compiler.reset()
    compiled = torch.compile(tiny_model, fullgraph=True, backend=backend)
    close(compiled(input_values).logits, tiny_model(input_values).logits, atol=2e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_takes_float32_input(tiny_model, input_values, dtype):
    full = tiny_model(input_values).logits
    half = tiny_model.to(dtype)(input_values).logits
    assert half.dtype == dtype
    close(half.float(), full, atol=16 * torch.finfo(dtype).eps * full.abs().max().item(), rtol=0)


def test_saved_and_loaded_model_is_the_same(tiny_model, input_values, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = ASTForAudioClassification.from_pretrained(tmp_path)
    close(loaded.state_dict(), tiny_model.state_dict(), atol=0, rtol=0)
    close(loaded(input_values).logits, tiny_model(input_values).logits, atol=1e-5, rtol=0)  # weights lie elsewhere
    assert loaded.config.to_diff_dict() == tiny_model.config.to_diff_dict()


# Outputs


@torch.no_grad()
def test_outputs_have_the_documented_shapes(tiny_model, input_values):
    output = tiny_model.base_model(input_values, output_hidden_states=True, output_attentions=True)
    assert output.last_hidden_state.shape == (3, 12, 32)
    assert output.pooler_output.shape == (3, 32)
    assert [tuple(states.shape) for states in output.hidden_states] == [(3, 12, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, 4, 12, 12)] * 2


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attentions_are_real_whatever_the_implementation(tiny_model, input_values, implementation):
    model = with_attention(tiny_model, implementation)
    expected = model(input_values).logits
    output = model(input_values, output_attentions=True)
    assert len(output.attentions) == 2
    for weights in output.attentions:
        assert weights.shape == (3, 4, 12, 12)
        close(weights.sum(dim=-1), torch.ones(3, 4, 12))
        assert weights.std() > 1e-3  # a real map, not a uniform one
    close(output.logits, expected, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_configuration_can_ask_for_all_outputs(tiny_config, input_values):
    tiny_config.output_attentions, tiny_config.output_hidden_states = True, True
    output = random_model(tiny_config)(input_values)
    assert (len(output.attentions), len(output.hidden_states)) == (2, 3)


@torch.no_grad()
def test_what_is_not_asked_for_is_none(tiny_model, input_values):
    output = tiny_model(input_values)
    assert (output.loss, output.hidden_states, output.attentions) == (None, None, None)


@torch.no_grad()
def test_return_dict_false_gives_a_tuple(tiny_model, input_values):
    labels = torch.tensor([0, 1, 2])
    output = tiny_model(input_values, labels=labels)
    close(tiny_model(input_values, labels=labels, return_dict=False), (output.loss, output.logits))
    base = tiny_model.base_model(input_values)
    close(tiny_model.base_model(input_values, return_dict=False), (base.last_hidden_state, base.pooler_output))


@torch.no_grad()
@pytest.mark.parametrize("strides", [(10, 10), (8, 5), (16, 16)])
def test_fold_patches_puts_every_patch_where_it_was(tiny_config, input_values, strides):
    tiny_config.frequency_stride, tiny_config.time_stride = strides
    model = random_model(tiny_config)
    embeddings = model.base_model.embeddings
    tokens = embeddings(input_values) - embeddings.position_embeddings
    grid = model.fold_patches(tokens)
    kernel, bias = embeddings.patch_embeddings.projection.weight[:, 0], embeddings.patch_embeddings.projection.bias
    assert grid.shape == (3, tiny_config.num_frequency_patches, tiny_config.num_time_patches, 32)
    for f in range(grid.shape[1]):
        for t in range(grid.shape[2]):
            bins, frames = slice(f * strides[0], f * strides[0] + 16), slice(t * strides[1], t * strides[1] + 16)
            patch = input_values[:, frames, bins].transpose(1, 2)
            close(grid[:, f, t], torch.einsum("bij,dij->bd", patch, kernel) + bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 11, 32), (3, 2, 32), (12, 32)], ids=["odd", "no patches", "no batch"])
def test_fold_patches_refuses_what_is_no_grid(tiny_model, shape):
    with pytest.raises(ValueError) as error:
        tiny_model.fold_patches(torch.zeros(shape))
    assert f"(batch, 2 + 2 x time patches tokens, dim), got {shape}" in str(error.value)


# Training


def test_every_parameter_gets_a_gradient(tiny_model, input_values):
    tiny_model.train()(input_values, labels=torch.tensor([0, 1, 2])).loss.backward()
    without = [
        name for name, parameter in tiny_model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # Softmax does not see a constant added to every key, so the gradient of the keys' bias is zero but for rounding.
    assert [name for name in without if not name.endswith("key.bias")] == []


def gradients_and_layer_calls(model, input_values):
    """Loss, gradients and how often each layer runs; a checkpointed layer runs again in the backward pass."""
    calls = [0] * len(model.base_model.encoder.layer)

    def count(index):
        def hook(module, arguments):
            calls[index] += 1

        return hook

    for index, layer in enumerate(model.base_model.encoder.layer):
        layer.layernorm_before.register_forward_pre_hook(count(index))
    torch.manual_seed(0)
    loss = model(input_values, labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}, calls


@pytest.mark.parametrize(
    ("options", "expected_calls"),
    [
        ({}, [2, 2, 2, 2]),
        ({"every_n_layers": 2}, [2, 1, 2, 1]),
        ({"every_n_layers": 3}, [2, 1, 1, 2]),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, [2, 2, 2, 2]),
    ],
    ids=["every layer", "every second layer", "every third layer", "reentrant"],
)
def test_checkpointed_layers_run_again_and_give_the_same_gradients(tiny_config, input_values, options, expected_calls):
    tiny_config.num_hidden_layers = 4
    tiny_config.hidden_dropout_prob = 0.1  # the second run has to draw the same masks
    plain = random_model(tiny_config).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable(**options)
    loss, gradients, calls = gradients_and_layer_calls(plain, input_values)
    checkpointed_loss, checkpointed_gradients, checkpointed_calls = gradients_and_layer_calls(
        checkpointed, input_values
    )
    assert calls == [1, 1, 1, 1] and checkpointed_calls == expected_calls
    close(checkpointed_loss, loss)
    close(checkpointed_gradients, gradients)


def test_checkpointing_can_be_disabled_again(tiny_model, input_values):
    tiny_model.train().activation_checkpointing_enable()
    assert tiny_model.is_activation_checkpointing
    tiny_model.activation_checkpointing_disable()
    assert not tiny_model.is_activation_checkpointing
    assert gradients_and_layer_calls(tiny_model, input_values)[2] == [1, 1]


def test_checkpointing_does_nothing_in_evaluation(tiny_model, input_values):
    tiny_model.activation_checkpointing_enable()
    assert gradients_and_layer_calls(tiny_model.eval(), input_values)[2] == [1, 1]


def test_base_model_can_be_checkpointed_too(tiny_config, input_values):
    model = ASTModel(tiny_config)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing


# Fresh weights


@pytest.fixture(scope="module")
def fresh_model():
    torch.manual_seed(0)
    config = ASTConfig(num_hidden_layers=1, num_labels=527)  # wide, so that a standard deviation is worth comparing
    return ASTForAudioClassification(config)


@pytest.mark.parametrize("name", ["position_embeddings", "cls_token", "distillation_token"])
def test_fresh_positions_and_tokens_are_drawn_not_zero(fresh_model, name):
    parameter = getattr(fresh_model.base_model.embeddings, name)
    assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(parameter.mean().item()) < 0.003


def test_fresh_special_tokens_differ(fresh_model):
    embeddings = fresh_model.base_model.embeddings
    assert not torch.equal(embeddings.cls_token, embeddings.distillation_token)


def test_fresh_layers_have_truncated_normal_weights_and_no_bias(fresh_model):
    linears = [module for module in fresh_model.base_model.encoder.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 6
    for linear in linears:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not linear.bias.any()


def test_fresh_norms_are_the_identity(fresh_model):
    norms = [module for module in fresh_model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 4
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize("part", ["patches", "head"])
def test_fresh_patches_and_head_are_pytorchs_default(fresh_model, part):
    patches = fresh_model.base_model.embeddings.patch_embeddings.projection
    module = patches if part == "patches" else fresh_model.classifier.dense
    bound = 1 / math.sqrt(256 if part == "patches" else 768)
    for parameter in (module.weight, module.bias):
        # Uniform: the largest value is just inside the bound, and the deviation is bound / sqrt(3).
        assert 0.97 * bound < parameter.abs().max().item() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_initializer_range_is_the_deviation_of_fresh_weights(tiny_config):
    tiny_config.initializer_range = 0.1
    table = ASTModel(tiny_config).embeddings.position_embeddings
    assert table.std().item() == pytest.approx(0.1, rel=0.2)


# Loss


@pytest.fixture
def logits():
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(2))


INDICES = torch.tensor([0, 3, 4, 1])
SOFT = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(3)), dim=-1)
MULTI_HOT = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_class_indices_give_cross_entropy(logits, dtype, problem_type):
    expected = -logits.log_softmax(dim=-1)[torch.arange(4), INDICES].mean()
    close(classification_loss(logits, INDICES.to(dtype), problem_type), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_one_hot_soft_labels_give_the_loss_of_their_indices(logits, dtype):
    one_hot = F.one_hot(INDICES, 5).to(dtype)
    expected = classification_loss(logits, INDICES, "single_label_classification")
    close(classification_loss(logits, one_hot, "single_label_classification"), expected)


def test_soft_labels_give_cross_entropy_by_its_formula(logits):
    expected = -(SOFT * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    close(classification_loss(logits, SOFT, "single_label_classification"), expected)


def test_mixed_labels_give_the_mixed_loss(logits):
    """Mixup with cross entropy, which stock AST refuses."""
    first, second = F.one_hot(INDICES, 5), F.one_hot(INDICES.flip(0), 5)
    mixed = classification_loss(logits, 0.3 * first + 0.7 * second, "single_label_classification")
    close(mixed, 0.3 * F.cross_entropy(logits, INDICES) + 0.7 * F.cross_entropy(logits, INDICES.flip(0)))


@pytest.mark.parametrize("labels", [MULTI_HOT, MULTI_HOT.bool(), MULTI_HOT.float(), 0.7 * MULTI_HOT + 0.1])
@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
def test_a_column_a_label_gives_binary_cross_entropy(logits, labels, problem_type):
    p, y = logits.sigmoid(), labels.float()
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    close(classification_loss(logits, labels, problem_type), expected)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("problem_type", ["regression", None])
def test_one_output_gives_squared_error(logits, shape, problem_type):
    values = torch.tensor([0.5, -1.0, 2.0, 0.0])
    expected = ((logits[:, 0] - values) ** 2).mean()
    close(classification_loss(logits[:, :1], values.view(shape), problem_type), expected)


def test_regression_of_several_outputs_gives_squared_error(logits):
    close(classification_loss(logits, SOFT, "regression"), ((logits - SOFT) ** 2).mean())


@pytest.mark.parametrize(
    ("labels", "problem_type", "words"),
    [
        (INDICES[:3], "single_label_classification", r"class indices of shape \(4,\).*got torch.int64 .*\(3,\)"),
        (INDICES.float(), "single_label_classification", r"class indices of shape \(4,\).*got torch.float32 .*\(4,\)"),
        (SOFT[:, :4], "single_label_classification", r"soft labels of shape \(4, 5\).*got torch.float32 .*\(4, 4\)"),
        (INDICES, "multi_label_classification", r"labels in \[0, 1\] of shape \(4, 5\).*got torch.int64 .*\(4,\)"),
        (MULTI_HOT[:, :4], None, r"labels in \[0, 1\] of shape \(4, 5\).*multi_label.*got torch.int64.*\(4, 4\)"),
        (INDICES, "regression", r"values of shape \(4, 5\).*got torch.int64.*\(4,\)"),
        (SOFT.T, "regression", r"values of shape \(4, 5\).*got torch.float32.*\(5, 4\)"),
        (INDICES, "multilabel", "multi_label_classification.*got 'multilabel'"),
    ],
)
def test_labels_of_another_shape_or_type_are_refused(logits, labels, problem_type, words):
    with pytest.raises(ValueError, match=words):
        classification_loss(logits, labels, problem_type)


@pytest.mark.parametrize("labels", [INDICES[:3], MULTI_HOT[:3], MULTI_HOT[:3].float()], ids=["int", "hot", "float"])
def test_problem_type_is_not_rewritten(tiny_model, input_values, labels):
    tiny_model(input_values, labels=labels)
    assert tiny_model.config.problem_type is None


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [("single_label_classification", SOFT[:3]), ("multi_label_classification", SOFT[:3]), ("regression", SOFT[:3])],
)
def test_problem_type_of_the_configuration_chooses_the_loss(tiny_model, input_values, problem_type, labels):
    tiny_model.config.problem_type = problem_type
    output = tiny_model(input_values, labels=labels)
    close(output.loss, classification_loss(output.logits, labels, problem_type))


def test_loss_is_computed_in_float32(tiny_model, input_values):
    loss = tiny_model.bfloat16()(input_values, labels=INDICES[:3]).loss
    assert loss.dtype == torch.float32


# What is refused


@pytest.mark.parametrize("keyword", ["input_vales", "attention_masks", "label", "num_items_in_batch"])
def test_unknown_keywords_are_refused(tiny_model, input_values, keyword):
    for model in (tiny_model, tiny_model.base_model):
        with pytest.raises(TypeError, match=keyword):
            model(input_values, **{keyword: None})


def test_swapped_axes_are_refused_by_name(tiny_model, input_values):
    with pytest.raises(ValueError) as error:
        tiny_model(input_values.transpose(1, 2))
    assert "(batch, 16 or more frames, 32 mel bins), got (3, 32, 64). The last two axes are swapped." in str(
        error.value
    )


def test_other_mel_bins_are_refused_with_what_to_do(tiny_model):
    with pytest.raises(ValueError) as error:
        tiny_model(torch.zeros(2, 64, 48))
    assert "32 mel bins), got (2, 64, 48). For 48 mel bins load the model with num_mel_bins=48" in str(error.value)


@pytest.mark.parametrize("frames", [0, 1, 15])
def test_less_than_one_patch_is_refused(tiny_model, frames):
    with pytest.raises(ValueError) as error:
        tiny_model(torch.zeros(2, frames, 32))
    assert f"got (2, {frames}, 32): less than one patch of 16 frames" in str(error.value)


@pytest.mark.parametrize("shape", [(64, 32), (1, 1, 64, 32)])
def test_input_without_batch_or_with_channels_is_refused(tiny_model, shape):
    with pytest.raises(ValueError, match="input_values of shape .*got"):
        tiny_model(torch.zeros(shape))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_and_gradients_are_those_of_the_last_layer_computed_for_all_tokens(
    tiny_model, input_values, implementation, masked, checkpointing
):
    """Only two tokens are pooled; asking for hidden states makes the last layer compute the others too."""
    tiny_model.set_attn_implementation(implementation)
    tiny_model.train()
    if checkpointing:
        tiny_model.gradient_checkpointing_enable()
    mask = torch.ones(input_values.shape[:2], dtype=torch.long)
    mask[0, 40:] = 0
    results = []
    for all_tokens in (False, True):
        tiny_model.zero_grad()
        output = tiny_model(input_values, attention_mask=mask if masked else None, output_hidden_states=all_tokens)
        output.logits.square().sum().backward()
        results.append([output.logits, *(parameter.grad.clone() for parameter in tiny_model.parameters())])
    for few, every in zip(*results):
        torch.testing.assert_close(few, every, rtol=1e-4, atol=1e-5)


def test_the_headless_model_gives_all_tokens(tiny_model, input_values):
    body = tiny_model.audio_spectrogram_transformer
    few, every = body(input_values, only_pooled=True), body(input_values)
    assert few.last_hidden_state.shape[1] == 2 and every.last_hidden_state.shape[1] == 2 + 10
    torch.testing.assert_close(few.last_hidden_state, every.last_hidden_state[:, :2])
    torch.testing.assert_close(few.pooler_output, every.pooler_output)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mlp_in_pieces_is_the_mlp(monkeypatch, tiny_model, input_values, batch, dtype):
    """Without gradients a CPU computes it in pieces; here of at most 7 of the 12 or 36 tokens."""
    monkeypatch.setattr("modeling_ast.modeling_ast.MLP_TOKENS", 7)
    tiny_model.to(dtype)
    whole = tiny_model(input_values[:batch]).logits
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(input_values[:batch]).logits, whole.detach(), rtol=1e-5, atol=1e-5)
