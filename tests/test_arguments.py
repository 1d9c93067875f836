"""Training arguments do what they say, fit together, or are refused with what to do instead."""

import copy
import dataclasses
import math
import re

import pytest
import torch
from conftest import make_tiny_config, random_model
from datasets import Dataset

from modeling_ast import ASTForAudioClassification
from modeling_ast.commands.train import main as run_recipe
from modeling_ast.data import synthetic
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.data.recipes import DataArguments
from modeling_ast.modeling_ast import classification_loss
from modeling_ast.training.arguments import ASTTrainingArguments, AugmentArguments
from modeling_ast.training.rows import TrainingRows
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

ORIGINAL_ADAM = {"learning_rate": 0.01, "weight_decay": 0.1, "adam_beta1": 0.95, "adam_beta2": 0.999}


@pytest.fixture
def make(tmp_path):
    """Makes training arguments."""
    common = {"use_cpu": True, "report_to": "none", "do_train": True}
    return lambda **settings: ASTTrainingArguments(str(tmp_path), **(common | settings))


@pytest.fixture
def make_trainer(make):
    """Makes a trainer of a tiny model, with its optimiser."""

    def build(model: ASTForAudioClassification | None = None, **settings) -> ASTTrainer:
        model = random_model(make_tiny_config()) if model is None else model
        trainer = ASTTrainer(model=model, args=make(**settings), train_dataset=TrainingRows(range(8)))
        trainer.create_optimizer()
        return trainer

    return build


def settings_of(trainer: ASTTrainer, name: str) -> dict[str, list]:
    """A setting of the optimiser for each parameter, by the parameter's name; as many as there are."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(names[id(parameter)], []).append(group[name])
    return found


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, times: int = 4) -> None:
    """Steps with the same gradients for every optimiser."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(times):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


# Global batch


def test_batches_are_transformers_default_where_nothing_is_said(make):
    assert make().per_device_train_batch_size == 8


@pytest.mark.parametrize(("settings", "share"), [({}, 12), ({"gradient_accumulation_steps": 4}, 3)])
def test_the_global_batch_is_divided(make, settings, share):
    arguments = make(global_batch_size=12, **settings)
    assert arguments.per_device_train_batch_size == share
    assert arguments.train_batch_size == share


def test_the_global_batch_is_divided_by_processes(make, monkeypatch):
    monkeypatch.setattr(ASTTrainingArguments, "world_size", property(lambda self: 3))
    assert make(global_batch_size=48, gradient_accumulation_steps=2).per_device_train_batch_size == 8
    with pytest.raises(ValueError, match=r"global_batch_size 50 cannot be divided by 3 device\(s\) x 2 step\(s\)"):
        make(global_batch_size=50, gradient_accumulation_steps=2)


def test_the_trainer_makes_batches_of_the_global_size(make_trainer):
    trainer = make_trainer(global_batch_size=4, gradient_accumulation_steps=2)
    assert trainer.global_batch_size == 4
    assert len(trainer.get_train_dataloader()) == 4  # steps of 2 clips: an epoch of 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"global_batch_size": 12, "gradient_accumulation_steps": 5},
            r"global_batch_size 12 cannot be divided by 1 device\(s\) x 5 step\(s\) of accumulation. Choose "
            "gradient_accumulation_steps",
        ),
        ({"global_batch_size": 0}, "global_batch_size 0 cannot be divided"),
        ({"global_batch_size": -4}, "global_batch_size -4 cannot be divided"),
        (
            {"global_batch_size": 12, "per_device_train_batch_size": 8},
            r"global_batch_size 12 is 12 clips for each of 1 device\(s\) x 1 step\(s\), got "
            "per_device_train_batch_size 8. Leave it out",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(make, settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


def test_batches_need_not_fit_where_nothing_is_trained(make):
    assert make(global_batch_size=12, gradient_accumulation_steps=5, do_train=False).per_device_train_batch_size == 8


def test_a_share_that_is_said_and_fits_is_taken(make):
    arguments = make(global_batch_size=12, per_device_train_batch_size=6, gradient_accumulation_steps=2)
    assert arguments.per_device_train_batch_size == 6


# Where tensors are


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator pins")
def test_on_a_cpu_nothing_is_pinned_and_the_argument_stays_as_it_was(tiny_model, tmp_path, recwarn):
    args = ASTTrainingArguments(output_dir=str(tmp_path), report_to="none")
    rows = Dataset.from_dict({"waveform": [[0.0]], "labels": [0]})
    trainer = ASTTrainer(model=tiny_model, args=args, train_dataset=TrainingRows(rows), eval_dataset=rows)
    trainer.train_collator = trainer.data_collator
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        next(iter(loader))
    assert args.dataloader_pin_memory
    assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]


# Early stopping


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold has no effect without early_stopping_patience"),
        ({"early_stopping_patience": 0}, r"Expected early_stopping_patience in \[1, inf\), got 0"),
        (
            {"early_stopping_patience": 2, "early_stopping_threshold": -1.0},
            r"threshold in \[0, inf\), got -1.0",
        ),
        (
            {"early_stopping_patience": 2, "metric_for_best_model": "mAP"},
            "Expected eval_strategy epoch and metric_for_best_model with early_stopping_patience, got no and mAP",
        ),
        ({"early_stopping_patience": 2, "eval_strategy": "epoch"}, "early_stopping_patience, got epoch and None"),
    ],
)
def test_early_stopping_that_has_nothing_to_go_by_is_refused(make, settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


# Schedule and average


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_step_first_epochs": 5}, "lr_step_first_epochs and lr_step_epochs have no effect without lr_step_factor"),
        ({"lr_step_epochs": 5}, "lr_step_first_epochs and lr_step_epochs have no effect without lr_step_factor"),
        ({"lr_step_factor": 0.5}, "Expected lr_scheduler_type constant or constant_with_warmup .* got linear"),
        (
            {"lr_step_factor": 0.5, "lr_scheduler_type": "cosine"},
            "constant_with_warmup with lr_step_factor, got cosine",
        ),
        (
            {"lr_step_factor": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 10},
            "Expected lr_scheduler_type constant_with_warmup with warmup_steps, got constant",
        ),
        ({"lr_step_factor": 0, "lr_scheduler_type": "constant"}, r"lr_step_factor in \(0, inf\), got 0"),
        (
            {"lr_step_factor": 0.5, "lr_step_first_epochs": -1, "lr_scheduler_type": "constant"},
            r"lr_step_first_epochs in \[0, inf\), got -1",
        ),
        (
            {"lr_step_factor": 0.5, "lr_step_epochs": 0, "lr_scheduler_type": "constant"},
            r"lr_step_epochs in \[1, inf\), got 0",
        ),
        (
            {"ema_decay": 0.9, "weight_average_start": 1},
            "Expected one average.* ema_decay and weight_average_start",
        ),
        ({"ema_decay": 0.0}, r"ema_decay in \(0, 1\), got 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay in \(0, 1\), got 1.0"),
        ({"weight_average_end": 3}, "weight_average_end has no effect without weight_average_start"),
        ({"weight_average_steps": 3}, "weight_average_steps has no effect without weight_average_start"),
        ({"weight_average_steps": 0, "weight_average_start": 1}, r"weight_average_steps in \[1, inf\), got 0"),
        (
            {"weight_average_steps": 2, "weight_average_start": 6, "max_steps": 5},
            "over updates of 1 to 5, got 6 to 5",
        ),
        (
            {"weight_average_steps": 4, "weight_average_start": 5, "max_steps": 7},
            "Expected weight_average_steps to divide an update of 5 to 7, got 4",
        ),
        ({"weight_average_start": 0, "num_train_epochs": 5}, "over epochs of 1 to 5, got 0 to 5"),
        ({"weight_average_start": 6, "num_train_epochs": 5}, "over epochs of 1 to 5, got 6 to 5"),
        (
            {"weight_average_start": 3, "weight_average_end": 2, "num_train_epochs": 5},
            "over epochs of 1 to 5, got 3 to 2",
        ),
        (
            {"weight_average_start": 2, "weight_average_end": 6, "num_train_epochs": 5},
            "over epochs of 1 to 5, got 2 to 6",
        ),
        ({"head_learning_rate_factor": 0}, r"Expected head_learning_rate_factor in \(0, inf\), got 0"),
        ({"head_learning_rate_factor": -2}, r"Expected head_learning_rate_factor in \(0, inf\), got -2"),
        (
            {"decoupled_weight_decay": False, "optim": "sgd"},
            "adamw_torch with decoupled_weight_decay false, got sgd",
        ),
        ({"remove_unused_columns": True}, "remove_unused_columns must stay false"),
        ({"eval_on_start": True}, "eval_on_start must stay false: results.csv has lines of trained epochs"),
        ({"do_predict": True}, "do_predict must stay false: every held-out split"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint must stay false: SIGTERM and Ctrl-C save"),
        ({"save_on_each_node": True}, "save_on_each_node must stay false: all machines share output_dir"),
        ({"ignore_data_skip": True}, "ignore_data_skip must stay false"),
        ({"dataloader_in_order": False}, "dataloader_in_order must stay true"),
        ({"prediction_loss_only": True}, "prediction_loss_only must stay false"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics must stay false"),
        ({"eval_do_concat_batches": False}, "eval_do_concat_batches must stay true"),
        ({"include_for_metrics": ["inputs"]}, "include_for_metrics must stay empty"),
        ({"use_liger_kernel": True}, "use_liger_kernel must stay false"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches .* would divide global_batch_size"),
        (
            {"global_batch_size": 12, "auto_find_batch_size": True},
            "auto_find_batch_size would change global_batch_size: use one",
        ),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model to be one of loss, accuracy, mAP.*, got f1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("block", [ModelArguments, DataArguments, AugmentArguments, ASTTrainingArguments])
def test_numbers_are_finite(block, value):
    """All that can hold a fraction, each alone."""
    needed = {DataArguments: {"dataset_name": "x"}, ASTTrainingArguments: {"output_dir": "x", "use_cpu": True}}
    names = [each.name for each in dataclasses.fields(block) if "float" in str(each.type)]
    assert len(names) > 0
    for name in names:
        with pytest.raises(ValueError, match=f"Expected {name} to be a finite number, got {value}"):
            block(**needed.get(block, {}), **{name: value})


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({"learning_rate": -1e-4}, "[0, inf)"),
        ({"weight_decay": -0.1}, "[0, inf)"),
        ({"adam_beta1": 1.0}, "[0, 1)"),
        ({"adam_beta2": -0.1}, "[0, 1)"),
        ({"adam_epsilon": -1e-8}, "[0, inf)"),
        ({"max_grad_norm": -1.0}, "[0, inf)"),
        ({"warmup_steps": -1}, "[0, inf)"),
        ({"label_smoothing_factor": 1.0}, "[0, 1)"),
        ({"num_train_epochs": 0.0}, "(0, inf)"),
        ({"num_train_epochs": -2.0}, "(0, inf)"),
        ({"seed": -1}, "[0, 4294967296)"),
        ({"seed": 2**32}, "[0, 4294967296)"),
        ({"data_seed": -1}, "[0, 4294967296)"),
        ({"samples_per_epoch": 0}, "[1, 1000000000]"),
        ({"per_device_train_batch_size": 0}, "[1, inf)"),
        ({"per_device_eval_batch_size": 0}, "[1, inf)"),
        ({"gradient_accumulation_steps": 0}, "[1, inf)"),
        ({"dataloader_num_workers": -1}, "[0, inf)"),
        ({"save_total_limit": -1}, "[1, inf)"),
        ({"save_strategy": "steps", "save_steps": 0}, "(0, inf)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_numbers_lie_within_their_intervals(make, settings, interval):
    name = list(settings)[-1]
    with pytest.raises(ValueError, match=re.escape(f"Expected {name} in {interval}, got {settings[name]}.")):
        make(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_dropout_prob": 1.0},
        {"attention_probs_dropout_prob": -0.1},
        {"initializer_range": 0.0},
        {"mixup_alpha": 100_000_000},
    ],
)
def test_numbers_of_the_other_blocks_lie_within_theirs(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"Expected {name} in .*, got {settings[name]}"):
        (AugmentArguments if name == "mixup_alpha" else ModelArguments)(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_step_factor": 0.5, "lr_scheduler_type": "constant"},
        {"lr_step_factor": 0.5, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10},
        {"weight_average_start": 1},
        {"ema_decay": 0.999},
        {"weight_average_start": 5, "weight_average_end": 5, "num_train_epochs": 5},
        {"weight_average_start": 5, "max_steps": 1000},  # as many epochs as these are
        {"weight_average_start": 100, "weight_average_steps": 7},
        {"weight_average_start": 100, "weight_average_end": 105, "weight_average_steps": 7, "max_steps": 105},
        {"decoupled_weight_decay": False, "optim": "adamw_torch_fused"},
        {"metric_for_best_model": "eval_mAP"},
    ],
)
def test_arguments_that_fit_are_taken(make, settings):
    arguments = make(**settings)
    assert {name: getattr(arguments, name) for name in settings} == settings


# Optimiser


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adam_with_l2_is_the_originals(make_trainer, optim):
    """torch.optim.Adam, with the decay on every parameter: biases, norms and positions too."""
    expected = random_model(make_tiny_config())
    adam = torch.optim.Adam(expected.parameters(), lr=0.01, betas=(0.95, 0.999), eps=1e-8, weight_decay=0.1)
    trainer = make_trainer(decoupled_weight_decay=False, optim=optim, **ORIGINAL_ADAM)
    update(trainer.model, trainer.optimizer)
    update(expected, adam)
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)
    decays = settings_of(trainer, "weight_decay")
    assert decays == {name: [0.1] for name, _ in expected.named_parameters()}


def test_adamw_spares_biases_and_norms(make_trainer):
    trainer = make_trainer(**ORIGINAL_ADAM)
    norms = {f"{n}.weight" for n, module in trainer.model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    spared = {n for n, _ in trainer.model.named_parameters() if n.endswith("bias") or n in norms}
    assert len(norms) == 6 and "classifier.layernorm.weight" in norms
    decays = settings_of(trainer, "weight_decay")
    assert decays == {name: [0.0 if name in spared else 0.1] for name, _ in trainer.model.named_parameters()}


def test_adamw_is_torchs(make_trainer):
    trainer = make_trainer(**ORIGINAL_ADAM)
    expected = random_model(make_tiny_config())
    decays = settings_of(trainer, "weight_decay")
    groups = [
        {"params": [p for n, p in expected.named_parameters() if decays[n] == [decay]], "weight_decay": decay}
        for decay in (0.1, 0.0)
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.95, 0.999), eps=1e-8)
    update(trainer.model, trainer.optimizer)
    update(expected, adamw)
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("factor", [10.0, 0.5])
def test_the_head_learns_at_a_multiple_of_the_rate(make_trainer, decoupled, factor):
    plain = make_trainer(decoupled_weight_decay=decoupled, **ORIGINAL_ADAM)
    trainer = make_trainer(decoupled_weight_decay=decoupled, head_learning_rate_factor=factor, **ORIGINAL_ADAM)
    expected = {
        n: [0.01 * factor if n.startswith("classifier.") else 0.01] for n, _ in trainer.model.named_parameters()
    }
    assert settings_of(trainer, "lr") == expected  # each parameter once
    assert trainer.optimizer.param_groups[0]["lr"] == 0.01  # the rate that is logged
    for name in ("weight_decay", "betas", "eps"):
        assert settings_of(trainer, name) == settings_of(plain, name)


def test_the_heads_steps_are_as_much_larger(make_trainer):
    before = random_model(make_tiny_config()).state_dict()
    moved = []
    for factor in (1.0, 10.0):
        trainer = make_trainer(head_learning_rate_factor=factor, weight_decay=0.0, learning_rate=0.01)
        update(trainer.model, trainer.optimizer, times=1)
        moved.append({name: tensor - before[name] for name, tensor in trainer.model.state_dict().items()})
    for name in before:
        scale = 10 if name.startswith("classifier.") else 1
        torch.testing.assert_close(moved[1][name], scale * moved[0][name], rtol=1e-4, atol=1e-6)


def test_the_heads_rate_keeps_its_multiple_through_the_schedule(make_trainer):
    trainer = make_trainer(
        head_learning_rate_factor=10.0,
        learning_rate=0.01,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=4,
        lr_step_factor=0.5,
    )
    trainer.get_train_dataloader()
    trainer.create_scheduler(10)
    for _ in range(5):
        for name, (rate,) in settings_of(trainer, "lr").items():
            body = trainer.optimizer.param_groups[0]["lr"]
            assert rate == pytest.approx(10 * body if name.startswith("classifier.") else body)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_the_multiple_is_taken_once_however_often_the_optimiser_is_asked_for(make_trainer):
    """As by a second `train`, or by a search for a batch size that fits into memory."""
    trainer = make_trainer(head_learning_rate_factor=10.0, learning_rate=0.01)
    rates = settings_of(trainer, "lr")
    trainer.create_optimizer()
    assert settings_of(trainer, "lr") == rates


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_frozen_parameters_are_not_in_the_optimiser(make_trainer, factor):
    model = random_model(make_tiny_config())
    model.audio_spectrogram_transformer.requires_grad_(False)
    trainer = make_trainer(model, head_learning_rate_factor=factor, learning_rate=0.01)
    names = [name for name, _ in model.named_parameters() if name.startswith("classifier.")]
    assert settings_of(trainer, "lr") == {name: [pytest.approx(0.01 * factor)] for name in names}
    assert all(group["params"] for group in trainer.optimizer.param_groups)


@pytest.mark.filterwarnings("error:Label smoothing")
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_label_smoothing_is_torchs_whatever_the_labels(make_trainer, problem_type, labels):
    """A label among several is a choice between yes and no; the soft ones are as mixup makes them."""
    model = random_model(make_tiny_config(problem_type=problem_type))
    trainer, count = make_trainer(model, label_smoothing_factor=0.2), model.config.num_labels
    is_multi, generator = problem_type.startswith("multi"), torch.Generator().manual_seed(0)
    if labels == "soft":
        targets = torch.rand(4, count, generator=generator)
        targets = targets if is_multi else targets / targets.sum(dim=1, keepdim=True)
    elif is_multi:
        targets = torch.rand(4, count, generator=generator).round()
    else:
        targets = torch.randint(count, (4,), generator=generator)
    inputs = {"input_values": torch.randn(4, model.config.max_length, model.config.num_mel_bins), "labels": targets}
    loss, outputs = trainer.compute_loss(model.train(), dict(inputs), return_outputs=True)
    logits, cross_entropy = outputs.logits, torch.nn.functional.cross_entropy
    if is_multi:
        logits, expected = (torch.stack(pair, dim=1) for pair in ((0 * logits, logits), (1 - targets, targets)))
        torch.testing.assert_close(loss, cross_entropy(logits, expected, label_smoothing=0.2))
    else:
        torch.testing.assert_close(loss, cross_entropy(logits, targets, label_smoothing=0.2))
    loss, outputs = trainer.compute_loss(model.eval(), dict(inputs), return_outputs=True)  # not smoothed
    torch.testing.assert_close(loss, classification_loss(outputs.logits, targets, problem_type))


class Trained(Exception):
    """Ends the script after its training."""


def test_freezing_trains_the_classifier_alone(tmp_path, tmp_path_factory, monkeypatch):
    """By the script: all of the head moves, and nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(synthetic, "CLIPS_PER_CLASS", {"train": 2, "validation": 1, "test": 1})
    train, models = ASTTrainer.train, []

    def train_and_stop(self, *args, **kwargs):
        models.append(copy.deepcopy(self.model))
        train(self, *args, **kwargs)
        models.append(self.model)
        raise Trained

    monkeypatch.setattr(ASTTrainer, "train", train_and_stop)
    random_model(make_tiny_config(id2label=dict(enumerate(synthetic.CLASSES)))).save_pretrained(tmp_path / "model")
    data = [
        "--dataset_name=synthetic",
        f"--model_name_or_path={tmp_path / 'model'}",
        f"--output_dir={tmp_path / 'run'}",
    ]
    settings = ["--do_train=true", "--freeze_backbone=true", "--max_steps=2", "--learning_rate=0.1", "--use_cpu=true"]
    with pytest.raises(Trained):
        run_recipe([*data, *settings, "--report_to=none", "--disable_tqdm=true"])
    before, after = (model.state_dict() for model in models)
    head = {name for name in before if name.startswith("classifier.")}
    assert {name for name, parameter in models[1].named_parameters() if parameter.requires_grad} == head
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == head


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_separator": ""}, "Expected a label_separator, got nothing"),
        ({"max_train_samples": 0}, r"Expected max_train_samples in \[1, inf\), got 0"),
        ({"max_eval_samples": -1}, r"Expected max_eval_samples in \[1, inf\), got -1"),
    ],
)
def test_keys_of_the_data_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DataArguments(dataset_name="clips.csv", **settings)
