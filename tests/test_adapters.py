"""LoRA: what is trained, what an adapted layer computes, and that adapter, merged model and stock say the same."""

import math
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import make_tiny_config, random_model
from helpers import StopAt, stack
from safetensors.torch import load_file
from test_averaging import Weights, make_trainer
from test_reproducibility import assert_equal_up_to_rounding, assert_identical, interrupt, launch, run
from test_reproducibility import recipe as recipe

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.recipes import RecipeError
from modeling_ast.loading import ModelError, load_model
from modeling_ast.training.adapters import TARGETS, add_adapters
from modeling_ast.training.arguments import ASTTrainingArguments, parse_arguments
from modeling_ast.training.output_dir import prepare_output_dir
from modeling_ast.training.trainer import ASTTrainer

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.usefixtures("one_thread")]
RANK = 3
REENTRANT = {"use_reentrant": True}  # torch's older way to checkpoint activations


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def tiny(**overrides) -> ASTForAudioClassification:
    return random_model(make_tiny_config(head_layer_norm_eps=None, **overrides))


def adapted_trainer(folder: Path, **settings) -> ASTTrainer:
    trainer = make_trainer(folder, **settings)
    trainer.model.config.head_layer_norm_eps = None  # as stock has it
    trainer.model.classifier.layernorm.eps = trainer.model.config.layer_norm_eps
    trainer.adapters = add_adapters(trainer.model, RANK)
    trainer.processing_class = ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    return trainer


# What it is


@pytest.mark.parametrize("targets", [None, ["query", "value"], ["output.dense"]])
def test_adapters_begin_with_nothing_and_only_they_and_the_head_are_trained(input_values, targets, caplog):
    model = tiny()
    shapes = {name: each.shape for name, each in model.named_parameters()}
    with torch.no_grad(), caplog.at_level("INFO"):
        before = model(input_values).logits
        adapters = add_adapters(model, RANK, targets=targets)
        close(model(input_values).logits, before)
    assert adapters.base_model.model is model
    wanted = {f"layer.{layer}.{TARGETS[name]}.weight" for layer in range(2) for name in targets or TARGETS}
    sizes = [RANK * sum(shape) for name, shape in shapes.items() if name.partition("encoder.")[2] in wanted]
    of_head = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("classifier."))
    assert len(sizes) == len(wanted)
    assert f"{sum(sizes) + of_head:,} parameters are trained" in caplog.text
    model.train()
    for _ in range(2):  # B is zero in the first step, and so is the gradient of A
        model(input_values, labels=torch.tensor([0, 1, 2])).loss.backward()
        with torch.no_grad():
            for name, each in model.named_parameters():
                is_trained = "lora_" in name or "classifier.modules_to_save." in name
                assert (each.grad is not None) == is_trained, name
                if is_trained:
                    each -= 0.1 * each.grad
    assert all(each.grad.abs().max() > 0 for name, each in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (6.0, 2.0), (1.5, 0.5)])
def test_an_adapted_layer_computes_what_the_paper_says(alpha, scale):
    """W x + b + alpha / rank · B A x, in NumPy."""
    model = tiny()
    add_adapters(model, RANK, alpha, ["intermediate.dense"])
    layer = model.audio_spectrogram_transformer.encoder.layer[1].intermediate.dense
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((5, layer.in_features)).astype(np.float32)
    a, b = numbers.standard_normal((RANK, layer.in_features)), numbers.standard_normal((layer.out_features, RANK))
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.from_numpy(a))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(b))
        actual = layer(torch.from_numpy(x)).numpy()
    own = layer.get_base_layer()
    expected = x @ own.weight.detach().numpy().T + own.bias.detach().numpy() + scale * (x @ a.T) @ b.T
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_adapters_past_activation_checkpointing(input_values):
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = tiny()
        add_adapters(model, RANK)
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        model.train()
        model(input_values, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_no_gradient_reaches_the_adapters_past_reentrant_checkpointing(input_values):
    """Which is why it is refused with them."""
    model = tiny()
    add_adapters(model, RANK)
    model.activation_checkpointing_enable(REENTRANT)
    model.train()(input_values, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert not [name for name, each in model.named_parameters() if "lora_" in name and each.grad is not None]


def test_rates_of_the_head_and_of_layers_hold_for_adapters(tmp_path):
    trainer = adapted_trainer(tmp_path, layer_learning_rate_decay=0.5, head_learning_rate_factor=3.0)
    trainer.create_optimizer()
    names = {each: name for name, each in trainer.model.named_parameters()}
    rates = {names[each]: group["lr"] for group in trainer.optimizer.param_groups for each in group["params"]}
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in rates)
    for name, rate in rates.items():
        expected = 3 if "classifier" in name else 0.25 if ".layer.0." in name else 0.5
        assert rate == pytest.approx(1e-3 * expected), name


# A run


def test_a_run_ends_with_an_adapter_and_a_model_without_it(tmp_path, input_values):
    """The same logits as adapted, by the adapter on what it started from, merged, and saved, also in stock."""
    trainer, weights = adapted_trainer(tmp_path, ema_decay=0.5, learning_rate=0.1, num_train_epochs=2), Weights()
    start = tiny()
    start.save_pretrained(tmp_path / "start")
    trainer.add_callback(weights)
    trainer.train()
    model = trainer.model.eval()
    before, adapted = start(input_values).logits, model(input_values).logits.detach()
    assert (adapted - before).abs().max() > 1e-2
    trainer.save_end({})
    assert "as the recipe in the folder above makes them" in (tmp_path / "adapter" / "README.md").read_text()
    assert trainer.model is model and model.state_dict().keys() == start.state_dict().keys()
    close(model(input_values).logits, adapted)
    loaded = ASTForAudioClassification.from_pretrained(tmp_path / "start")
    close(peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()(input_values).logits, adapted)
    for module in (transformers, sys.modules["modeling_ast"]):
        close(module.ASTForAudioClassification.from_pretrained(tmp_path).eval()(input_values).logits, adapted)

    # The average is the adapters' own, merged.
    expected = weights.seen[0]
    for each in weights.seen[1:]:
        expected = {name: 0.5 * mean + 0.5 * each[name] for name, mean in expected.items()}
    layer = "audio_spectrogram_transformer.encoder.layer.1.output.dense"
    a, b = (expected[f"{layer}.lora_{matrix}.default.weight"] for matrix in "AB")
    average = load_file(tmp_path / "weight_average" / "model.safetensors")
    torch.testing.assert_close(average[f"{layer}.weight"], expected[f"{layer}.base_layer.weight"] + 2 * b @ a)
    own = "classifier.modules_to_save.default.dense.weight"
    torch.testing.assert_close(average["classifier.dense.weight"], expected[own])


@pytest.mark.parametrize("update", [2, 3], ids=["after an epoch", "within one"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, update):
    settings = {"ema_decay": 0.7, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": update}
    whole = adapted_trainer(tmp_path / "whole", **settings)
    whole.train()
    interrupted = adapted_trainer(tmp_path / "parts", **settings)
    interrupted.add_callback(StopAt(update))
    interrupted.train()
    with pytest.raises(ModelError, match="got a checkpoint with adapters"):
        load_model(tmp_path / "parts" / f"checkpoint-{update}")
    resumed = adapted_trainer(tmp_path / "parts", **settings)
    with torch.no_grad():  # all of it comes from the checkpoint
        for each in resumed.model.parameters():
            each.add_(1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{update}"))
    for one, other in (
        (resumed.model.state_dict(), whole.model.state_dict()),
        (resumed.average.weights, whole.average.weights),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_run_that_has_ended_is_taken_up_as_it_was_saved(tmp_path, input_values, caplog):
    trainer = adapted_trainer(tmp_path, num_train_epochs=1)
    trainer.train()
    trainer.save_end({"train_loss": 1.0})
    saved, expected = trainer.model.state_dict(), trainer.model.eval()(input_values).logits
    again = adapted_trainer(tmp_path, num_train_epochs=1)
    assert again.load_end() == {"train_loss": 1.0}
    found = again.model.state_dict()
    assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)
    torch.testing.assert_close(again.model.eval()(input_values).logits, expected, rtol=0, atol=1e-6)
    tiny(intermediate_size=48).save_pretrained(tmp_path)  # a file of another model: the last part is done again
    again = adapted_trainer(tmp_path, num_train_epochs=1)
    assert again.load_end() is None and any("lora_A" in name for name in again.model.state_dict())


def test_adapters_are_refused_where_weights_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(ASTTrainer, "is_sharded", True)
    trainer = make_trainer(tmp_path)
    with pytest.raises(RecipeError, match="lora_rank cannot be used with FSDP or DeepSpeed"):
        ASTTrainer(model=trainer.model, args=trainer.args, train_collator=stack, adapters=object())


def test_a_run_that_replaces_another_has_no_adapter_of_it(tmp_path):
    argv = ["--dataset_name=synthetic", f"--output_dir={tmp_path}", "--use_cpu=true", "--do_train=true"]
    prepare_output_dir(tmp_path, parse_arguments(argv))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "mine").mkdir()
    prepare_output_dir(tmp_path, parse_arguments(argv))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["mine"]


# Keys


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_alpha": 2.0}, "lora_alpha has no effect without lora_rank"),
        ({"lora_targets": ["query"]}, "lora_targets has no effect without lora_rank"),
        ({"lora_rank": -1}, r"Expected lora_rank in \[0, inf\), got -1"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, r"Expected lora_alpha in \(0, inf\), got 0"),
        ({"lora_rank": 2, "lora_targets": ["query", "dense"]}, "Expected lora_targets of query, .*, got dense"),
        ({"lora_rank": 2, "freeze_backbone": True}, "Expected freeze_backbone or lora_rank, got both"),
        ({"lora_rank": 2, "push_to_hub": True}, "Expected hub_strategy end with lora_rank"),
        (
            {"lora_rank": 2, "activation_checkpointing": True, "activation_checkpointing_kwargs": REENTRANT},
            "Expected use_reentrant false with lora_rank",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        ASTTrainingArguments(str(tmp_path), use_cpu=True, **settings)


def test_random_weights_and_a_missing_peft_are_one_sentence_each(tmp_path, monkeypatch):
    argv = ["--dataset_name=synthetic", f"--output_dir={tmp_path}", "--use_cpu=true", "--lora_rank=2"]
    with pytest.raises(
        RecipeError, match="Expected trained weights to adapt with lora_rank, got random ones .tiny224"
    ):
        parse_arguments([*argv, "--model_name_or_path=tiny224"])
    found = util.find_spec
    monkeypatch.setattr(
        "modeling_ast.training.adapters.find_spec", lambda name: None if name == "peft" else found(name)
    )
    with pytest.raises(RecipeError, match=r"lora_rank needs PEFT: pip install 'modeling_ast\[lora\]'"):
        parse_arguments([*argv, "--model_name_or_path=somewhere"])


# The command, with all that draws


@pytest.fixture(scope="module")
def argv(recipe, tmp_path_factory) -> list:
    """Of a run from saved weights of the network of the recipe."""
    start = tmp_path_factory.mktemp("start")
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1, "num_labels": 3}
    random_model(make_tiny_config(**sizes)).save_pretrained(start)
    argv = [recipe, "--model_name_or_path", start, "--lora_rank=2", "--lora_targets", "query", "value", "output.dense"]
    return [*argv, "--hidden_dropout_prob=0.1", "--decoupled_weight_decay=true"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures_in_module")
def test_a_run_with_adapters_resumes_exactly_and_is_the_same_on_two_processes(argv, tmp_path, monkeypatch):
    whole, parts, two = (tmp_path / name for name in ("whole", "parts", "two"))
    best = ["--save_strategy=epoch", "--load_best_model_at_end=true", "--metric_for_best_model=accuracy"]
    run(*argv, *best, "--output_dir", whole)
    assert "Trained with LoRA of rank 2, merged into the weights" in (whole / "README.md").read_text()
    interrupt(monkeypatch, ASTTrainer, "training_step", 8, *argv, *best, "--output_dir", parts)
    assert not (parts / "adapter").exists()
    assert f'"{argv[2]}"' in (whole / "adapter" / "README.md").read_text()
    run(*argv, *best, "--resume_from_checkpoint=true", "--output_dir", parts)
    assert_identical(parts, whole)
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (parts, whole)]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][name], tensor) for name, tensor in adapters[1].items())
    # Dropout draws for each process on its own.
    argv = [*argv, "--hidden_dropout_prob=0", "--save_strategy=no"]
    run(*argv, "--output_dir", whole, "--overwrite_output_dir=true")
    process = launch(tmp_path, *argv, "--output_dir", two)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_equal_up_to_rounding(two, whole)
