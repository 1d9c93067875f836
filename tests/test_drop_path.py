"""Stochastic depth: a clip of a training batch skips a branch as often as its layer says, and nothing else moves."""

import copy

import pytest
import torch
import transformers
from conftest import make_tiny_config, random_model
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTForAudioClassification
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.training.building import build_model

close = torch.testing.assert_close
pytestmark = pytest.mark.usefixtures("one_thread")

RATE, LAYERS, CLIPS = 0.4, 5, 3000


def make_model(**options) -> ASTForAudioClassification:
    return random_model(make_tiny_config(num_hidden_layers=LAYERS, **options))


def with_drop_path(model: ASTForAudioClassification, rate: float = RATE, **options) -> ASTForAudioClassification:
    """The same weights, in training mode."""
    changed = ASTForAudioClassification(make_tiny_config(num_hidden_layers=LAYERS, drop_path_rate=rate, **options))
    changed.load_state_dict(model.state_dict())
    return changed.train()


def only(layer: torch.nn.Module, branch: str) -> torch.nn.Module:
    """A layer whose other branch adds nothing."""
    layer = copy.deepcopy(layer)
    silent = layer.output["dense"] if branch == "attention" else layer.attention.output["dense"]
    torch.nn.init.zeros_(silent.weight), torch.nn.init.zeros_(silent.bias)
    return layer


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_each_layer_drops_its_share_of_the_clips_and_scales_up_the_others(branch):
    """By hand: 0, a quarter, a half, three quarters and all of the rate in five layers; the mean is as without it."""
    torch.manual_seed(0)
    inputs = torch.randn(1, 3, 32).expand(CLIPS, -1, -1)
    for index, layer in enumerate(with_drop_path(make_model()).base_model.encoder.layer):
        layer = only(layer, branch)
        with torch.no_grad():
            (full, _), (output, _) = layer.eval()(inputs[:1]), layer.train()(inputs)
        added, expected = output - inputs, full - inputs[:1]
        dropped = (added == 0).flatten(1).all(dim=1)
        rate = RATE * index / 4
        assert dropped.float().mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / CLIPS) ** 0.5)
        close(added[~dropped], (expected / (1 - rate)).expand_as(added[~dropped]), rtol=1e-4, atol=1e-5)
        deviation = (rate / (1 - rate) / CLIPS) ** 0.5  # of the mean, in parts of what is added
        close(added.mean(dim=0), expected[0], rtol=4.5 * deviation + 1e-4, atol=1e-5)


def test_branches_layers_and_clips_are_dropped_independently_of_one_another():
    torch.manual_seed(0)
    layers = with_drop_path(make_model()).base_model.encoder.layer
    branch = torch.ones(CLIPS, 1, 1)
    draws = torch.stack([layers[index].drop_path(branch).flatten() > 0 for index in (3, 3, 4, 4)]).float()
    others = torch.corrcoef(torch.cat([draws, draws[:1].roll(1, dims=1)])) - torch.eye(5)
    assert others.abs().max() < 4.5 / CLIPS**0.5


def test_evaluation_does_not_know_of_it(input_values):
    plain = make_model()
    model, branch = with_drop_path(plain).eval(), torch.ones(2, 3, 32)
    assert all(layer.drop_path(branch) is branch for layer in model.base_model.encoder.layer)
    close(model(input_values).logits, plain(input_values).logits, atol=1e-6, rtol=0)


def test_nothing_changes_at_0_not_even_the_next_random_number(input_values):
    plain = make_model()
    model = with_drop_path(plain, 0.0)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    logits, branch = model(input_values).logits, torch.ones(2, 3, 32)
    assert torch.equal(torch.rand(1), expected)
    assert all(layer.drop_path(branch) is branch for layer in model.base_model.encoder.layer)
    close(logits, plain(input_values).logits, atol=1e-6, rtol=0)


def gradients(model: ASTForAudioClassification, **inputs) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    model(**inputs).logits.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_checkpointed_layers_drop_the_same_branches_again(input_values):
    model = with_drop_path(make_model())
    expected = gradients(model, input_values=input_values)
    model.gradient_checkpointing_enable()
    close(gradients(model, input_values=input_values), expected)
    close(gradients(model, input_values=input_values[[0, 0, 0]])[-1] == 0, torch.zeros(5, dtype=torch.bool))


def test_padding_has_no_say_with_it_and_patchout(input_values):
    """A clip's own logits and gradients, of one draw, whatever is in the frames that are not its own."""
    model = with_drop_path(make_model(), patchout_columns=1, patchout_rows=1)
    mask = torch.ones(3, 64, dtype=torch.long)
    mask[1, 40:] = 0
    found = []
    for content in (0.0, float("nan")):
        filled = input_values.masked_fill((mask == 0).unsqueeze(-1), content)
        found.append(gradients(model, input_values=filled, attention_mask=mask))
    close(*found)
    assert all(each.isfinite().all() for each in found[0])


@pytest.mark.slow
def test_a_compiled_model_draws_anew_for_every_batch(input_values):
    """Traced and differentiated as for any backend; the one that is compiled with draws in a way of its own."""
    model = with_drop_path(make_model())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = input_values[:1].expand(64, -1, -1)
    logits = [compiled(batch).logits for _ in range(2)]
    assert not torch.equal(*logits) and len(logits[0].unique(dim=0)) > 8
    logits[0].sum().backward()
    found = gradients(model, input_values=batch)
    close(gradients(compiled, input_values=batch), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_that_cannot_be_are_refused(rate):
    with pytest.raises(StrictDataclassError, match=r"drop_path_rate in \[0, 1\)"):
        make_tiny_config(drop_path_rate=rate)
    with pytest.raises(ValueError, match=r"Expected drop_path_rate in \[0, 1\)"):
        ModelArguments(drop_path_rate=rate)


def test_one_layer_which_drops_nothing_is_refused():
    with pytest.raises(StrictDataclassError, match="drop_path_rate 0 with one layer: it has no effect"):
        make_tiny_config(num_hidden_layers=1, drop_path_rate=0.1)


def test_recipe_key_reaches_the_layers_and_is_off_by_default(tmp_path):
    with_drop_path(make_model()).save_pretrained(tmp_path)
    labels = [f"LABEL_{index}" for index in range(5)]
    for arguments, last in (
        (ModelArguments(str(tmp_path), drop_path_rate=0.3), 0.3),
        (ModelArguments(str(tmp_path)), 0.0),  # what another run did is not a default
        (ModelArguments("tiny224", num_hidden_layers=3, drop_path_rate=0.2), 0.2),
    ):
        model = build_model(arguments, labels)
        layers = model.base_model.encoder.layer
        assert model.config.drop_path_rate == last
        rates = torch.linspace(0, last, len(layers)).tolist()
        assert [layer.drop_path_rate for layer in layers] == pytest.approx(rates)


def test_stock_loads_what_was_trained_with_it(tmp_path, input_values):
    model = with_drop_path(make_model(), head_layer_norm_eps=None).eval()
    model.save_pretrained(tmp_path)
    stock = transformers.ASTForAudioClassification.from_pretrained(tmp_path).train()
    close(stock(input_values).logits, model(input_values).logits)
