"""Rates by layer and of the head: what each parameter's is, an update with them, and how they follow a schedule."""

import pytest
import torch
from conftest import make_tiny_config, random_model
from test_averaging import make_trainer

from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.rates import rate_factors, split_groups

pytestmark = pytest.mark.usefixtures("one_thread")

DECAYS = {"layer_learning_rate_decay": 0.5, "head_learning_rate_factor": 3.0}
# Of two layers: embeddings, layers, final norm, head. Written out, as a reader of the definition would.
EXPECTED = {
    "audio_spectrogram_transformer.embeddings.": 0.5**3,
    "audio_spectrogram_transformer.encoder.layer.0.": 0.5**2,
    "audio_spectrogram_transformer.encoder.layer.1.": 0.5,
    "audio_spectrogram_transformer.layernorm.": 1.0,
    "classifier.": 3.0,
}


def expected_factor(name: str) -> float:
    (factor,) = [factor for prefix, factor in EXPECTED.items() if name.startswith(prefix)]
    return factor


def rates_of(trainer) -> dict[str, float]:
    """Of each parameter, which is in one group alone."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    pairs = [(names[each], group["lr"]) for group in trainer.optimizer.param_groups for each in group["params"]]
    assert len(pairs) == len(names) == len(dict(pairs))
    return dict(pairs)


def test_rates_rise_from_the_embeddings_to_the_head(tmp_path):
    trainer = make_trainer(tmp_path, **DECAYS)
    trainer.create_optimizer()
    rates = rates_of(trainer)
    assert rates == {name: pytest.approx(1e-3 * expected_factor(name), rel=1e-12) for name in rates}
    assert {expected_factor(name) for name in rates} == set(EXPECTED.values())
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3  # the rate that is logged


def test_twelve_layers_have_the_rates_of_the_published_fine_tuning():
    """0.75 ** (12 + 1) for the embeddings of a base network, 0.75 for its last layer."""
    model = random_model(make_tiny_config(num_hidden_layers=12))
    names = [name for name, _ in model.named_parameters()]
    factors = dict(zip(names, rate_factors(model, 0.75).values()))
    assert factors["audio_spectrogram_transformer.embeddings.cls_token"] == pytest.approx(0.75**13)
    assert factors["audio_spectrogram_transformer.encoder.layer.0.output.dense.bias"] == pytest.approx(0.75**12)
    assert factors["audio_spectrogram_transformer.encoder.layer.11.output.dense.bias"] == 0.75
    assert factors["audio_spectrogram_transformer.layernorm.bias"] == factors["classifier.dense.weight"] == 1


def test_wrappers_do_not_hide_where_a_parameter_is():
    """Of names of compilation and of adapters."""
    model = random_model(make_tiny_config())
    wrapped = torch.nn.ModuleDict({"_orig_mod": torch.nn.ModuleDict({"base_model": model})})
    assert rate_factors(wrapped, 0.5, 3.0) == rate_factors(model, 0.5, 3.0)
    assert set(rate_factors(wrapped, 0.5, 3.0).values()) == set(EXPECTED.values())


@pytest.mark.parametrize("decoupled", [True, False], ids=["AdamW", "Adam"])
def test_an_update_is_torchs_with_groups_made_by_hand(tmp_path, decoupled):
    """With weight decay, which multiplies by each group's own rate where it is decoupled and spares norms."""
    settings = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled, **DECAYS}
    trainer = make_trainer(tmp_path, **settings)
    trainer.create_optimizer()
    expected = random_model(make_tiny_config())
    groups = [
        {
            "params": [parameter],
            "lr": 1e-3 * expected_factor(name),
            "weight_decay": 0.0 if decoupled and ("norm" in name or name.endswith("bias")) else 0.1,
        }
        for name, parameter in expected.named_parameters()
    ]
    by_hand = (torch.optim.AdamW if decoupled else torch.optim.Adam)(groups)
    for model, optimizer in ((trainer.model, trainer.optimizer), (expected, by_hand)):
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3, "lr_step_factor": 0.5},
    ],
    ids=lambda settings: settings["lr_scheduler_type"],
)
def test_rates_keep_their_factors_through_every_schedule(tmp_path, schedule):
    plain, trainer = make_trainer(tmp_path, **schedule), make_trainer(tmp_path, **schedule, **DECAYS)
    for each in (plain, trainer):
        each.get_train_dataloader()
        each.create_optimizer_and_scheduler(8)
    seen = set()
    for _ in range(8):
        (rate,) = set(rates_of(plain).values())
        seen.add(rate)
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(rate)  # what is logged
        rates = rates_of(trainer)
        assert rates == {name: pytest.approx(rate * expected_factor(name)) for name in rates}
        for each in (plain, trainer):
            each.optimizer.step()
            each.lr_scheduler.step()
    assert len(seen) > 3


@pytest.mark.parametrize("settings", [{"freeze_backbone": True, "head_learning_rate_factor": 3.0}, DECAYS])
def test_the_full_rate_is_told_also_where_nothing_learns_at_it(tmp_path, settings):
    """As of a frozen backbone, or where adapters leave the final norm frozen."""
    trainer = make_trainer(tmp_path, num_train_epochs=1, logging_steps=1, lr_scheduler_type="constant", **settings)
    body = trainer.model.audio_spectrogram_transformer
    frozen = body.layernorm if settings is DECAYS else body
    frozen.requires_grad_(False)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([1e-3] * 2) and trainer.last_rate == pytest.approx(1e-3)
    assert 1e-3 not in {group["lr"] for group in trainer.optimizer.param_groups}


def test_nothing_is_divided_at_1(tmp_path):
    trainer = make_trainer(tmp_path)
    groups = trainer.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [1e-3, 1e-3] and len(groups[0]["params"]) > 10


def test_a_resumed_run_goes_on_with_the_rates_that_it_had(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "cosine", **DECAYS}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    history = [[entry for entry in each.state.log_history if "learning_rate" in entry] for each in (whole, resumed)]
    assert history[0] == history[1] and rates_of(whole) == rates_of(resumed)
    plain = make_trainer(tmp_path / "plain", **{name: settings[name] for name in settings if name not in DECAYS})
    plain.train()
    assert not torch.equal(plain.model.classifier.dense.weight, whole.model.classifier.dense.weight)


def test_an_optimiser_without_the_models_parameters_is_refused():
    model = random_model(make_tiny_config())
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    split_groups(other, rate_factors(model))
    with pytest.raises(RecipeError, match="need an optimiser that updates all parameters at once"):
        split_groups(other, rate_factors(model, 0.5))


def test_rates_of_layers_that_are_frozen_are_refused(tmp_path):
    with pytest.raises(ValueError, match="layer_learning_rate_decay has no effect with freeze_backbone"):
        make_trainer(tmp_path, freeze_backbone=True, layer_learning_rate_decay=0.5)
