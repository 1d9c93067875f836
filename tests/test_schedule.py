"""The rate: by the recipes' own numbers, and rising to it from the first update on."""

import pickle
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config, random_model
from torch.optim.lr_scheduler import LinearLR, MultiStepLR

from modeling_ast.training.arguments import ASTTrainingArguments, parse_arguments
from modeling_ast.training.rows import TrainingRows
from modeling_ast.training.schedule import step_schedule
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HERE = ["--use_cpu=true", "--report_to=none", "--dataloader_num_workers=0"]

# Training clips, updates an epoch, and the rate in each epoch, of the original's runs.
# Source: the original's logs (rates to the three digits that they hold) and its scripts.
RECIPES = {
    "esc50": (1600, 34, [1e-5] * 5
        + [8.5e-6, 7.22e-6, 6.14e-6, 5.22e-6, 4.44e-6, 3.77e-6, 3.21e-6, 2.72e-6, 2.32e-6, 1.97e-6, 1.67e-6, 1.42e-6]
        + [1.21e-6, 1.03e-6, 8.74e-7, 7.43e-7, 6.31e-7, 5.36e-7, 4.56e-7, 3.876e-7]),
    "speech_commands_v2": (84_843, 663, [2.5e-4] * 5
        + [2.12e-4, 1.81e-4, 1.54e-4, 1.31e-4, 1.11e-4, 9.43e-5, 8.01e-5, 6.81e-5, 5.79e-5, 4.92e-5, 4.18e-5, 3.56e-5]
        + [3.02e-5, 2.57e-5, 2.18e-5, 1.86e-5, 1.58e-5, 1.34e-5, 1.14e-5, 9.69e-6, 8.236e-6, 7.00e-6, 5.95e-6]
        + [5.06e-6, 4.30e-6]),
    "audioset_balanced": (20_785, 1_733, [5e-5] * 10 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6] * 5),
    "audioset_full": (1_953_082, 162_757, [1e-5, 1e-5, 5e-6, 2.5e-6, 1.25e-6]),
}  # fmt: skip


def make_trainer(num_clips: int, arguments: ASTTrainingArguments) -> ASTTrainer:
    """As far as it is before its first update; no clip is ever asked for."""
    trainer = ASTTrainer(
        model=random_model(make_tiny_config()),
        args=arguments,
        train_dataset=TrainingRows(range(num_clips)),
        eval_dataset=[],
    )
    num_updates = len(trainer.get_train_dataloader()) // arguments.gradient_accumulation_steps
    trainer.create_optimizer_and_scheduler(num_updates * int(arguments.num_train_epochs))
    return trainer


def recipe_trainer(name: str, folder: Path, *overrides: str) -> ASTTrainer:
    path = str(CONFIGS / f"{name}.yaml")
    arguments = parse_arguments([path, f"--output_dir={folder}", *HERE, *overrides])[-1]
    return make_trainer(RECIPES[name][0], arguments)


def go_to(trainer: ASTTrainer, update: int) -> float:
    """The rate of an update, counted from 0, as after a resumption there."""
    scheduler = trainer.lr_scheduler
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": update - 1})
    scheduler.optimizer.step()
    scheduler.step()
    return scheduler.optimizer.param_groups[0]["lr"]


def rates(schedule, num_updates: int) -> list[float]:
    """Of each update of a run."""
    seen = []
    for _ in range(num_updates):
        seen.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return seen


def make_optimizer(rate: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=rate)


# Recipes


@pytest.mark.parametrize("name", RECIPES)
def test_rates_of_the_recipes_are_the_originals(name, tmp_path):
    _, steps, expected = RECIPES[name]
    trainer = recipe_trainer(name, tmp_path)
    assert len(trainer.get_train_dataloader()) == steps
    assert trainer.args.num_train_epochs == len(expected)
    ends = [go_to(trainer, epoch * steps - 1) for epoch in range(1, len(expected) + 1)]
    assert ends == pytest.approx(expected, rel=5e-3)
    beginnings = [go_to(trainer, epoch * steps) for epoch in range(1, len(expected))]
    assert beginnings == pytest.approx(ends[1:], rel=1e-12)  # constant within an epoch, once the warm-up is over


@pytest.mark.parametrize("name", RECIPES)
def test_rates_of_the_recipes_are_those_of_multi_step_lr(name, tmp_path):
    """The original's scheduler, stepped once an epoch, with the milestones of its scripts."""
    start, step, factor = {
        "esc50": (5, 1, 0.85),
        "speech_commands_v2": (5, 1, 0.85),
        "audioset_balanced": (10, 5, 0.5),
        "audioset_full": (2, 1, 0.5),
    }[name]
    _, steps, per_epoch = RECIPES[name]
    original = MultiStepLR(make_optimizer(per_epoch[0]), list(range(start, 1000, step)), factor)
    trainer = recipe_trainer(name, tmp_path)
    ends = [go_to(trainer, epoch * steps - 1) for epoch in range(1, len(per_epoch) + 1)]
    assert ends == pytest.approx(rates(original, len(per_epoch)), rel=1e-9)


@pytest.mark.parametrize("name", ["audioset_balanced", "audioset_full"])
def test_recipes_of_audioset_warm_up_over_their_first_1000_updates(name, tmp_path):
    trainer = recipe_trainer(name, tmp_path)
    rate = trainer.args.learning_rate
    seen = rates(trainer.lr_scheduler, 1100)
    assert seen == pytest.approx([rate * min(1.0, (update + 1) / 1000) for update in range(1100)], rel=1e-9)


@pytest.mark.parametrize("name", ["esc50", "speech_commands_v2"])
def test_the_other_recipes_do_not_warm_up(name, tmp_path):
    trainer = recipe_trainer(name, tmp_path)
    assert rates(trainer.lr_scheduler, 3) == [trainer.args.learning_rate] * 3


def test_a_resumed_schedule_goes_on(tmp_path):
    """All updates of a recipe, one by one, give what is read at single ones above."""
    _, steps, per_epoch = RECIPES["esc50"]
    seen = rates(recipe_trainer("esc50", tmp_path).lr_scheduler, steps * len(per_epoch))
    resumed = recipe_trainer("esc50", tmp_path)
    for update in (1, 169, 170, 171, 849):
        assert go_to(resumed, update) == pytest.approx(seen[update], rel=1e-12)


@pytest.mark.parametrize("overrides", [(), ("--gradient_accumulation_steps=4",)], ids=["one step", "accumulated"])
def test_an_epoch_is_as_many_updates_however_they_are_accumulated(overrides, tmp_path):
    trainer = recipe_trainer("esc50", tmp_path, *overrides)
    assert go_to(trainer, 6 * 34 - 1) == pytest.approx(8.5e-6) and go_to(trainer, 5 * 34 - 1) == pytest.approx(1e-5)


def test_schedules_count_epochs_of_so_many_draws(tmp_path):
    """Three updates of 48 clips an epoch, of 1600 clips."""
    trainer = recipe_trainer("esc50", tmp_path, "--samples_per_epoch=140")
    assert len(trainer.get_train_dataloader()) == 3 and trainer.num_examples(trainer.get_train_dataloader()) == 144
    assert go_to(trainer, 5 * 3 - 1) == pytest.approx(1e-5) and go_to(trainer, 5 * 3) == pytest.approx(8.5e-6)


@pytest.mark.parametrize("num_clips", [40, 4000])
def test_the_schedules_of_transformers_are_there_too(tmp_path, num_clips):
    arguments = ASTTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        learning_rate=1.0,
        lr_scheduler_type="linear",
        num_train_epochs=2,
        samples_per_epoch=40,
    )
    seen = rates(make_trainer(num_clips, arguments).lr_scheduler, 10)  # 5 updates an epoch
    assert seen == pytest.approx([1 - update / 10 for update in range(10)])


# Warm-up


@pytest.mark.parametrize("warmup_steps", [1, 2, 7, 50])
def test_warm_up_is_linear_and_never_0_and_ends_when_it_should(warmup_steps):
    schedule = step_schedule(make_optimizer(0.3), 1000, 5, 1, 0.5, warmup_steps=warmup_steps)
    seen = rates(schedule, 60)
    expected = make_optimizer(0.3)
    if warmup_steps > 1:
        linear = LinearLR(expected, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
        assert seen == pytest.approx(rates(linear, 60))
    assert min(seen) > 0 and seen[0] == pytest.approx(0.3 / warmup_steps)
    assert seen[warmup_steps - 1] == 0.3 and set(seen[warmup_steps - 1 :]) == {0.3}
    assert all(rate < 0.3 for rate in seen[: warmup_steps - 1])


def test_decay_goes_on_during_the_warm_up():
    """The original's overwrites it, so that all later rates are too high."""
    schedule = step_schedule(make_optimizer(), 10, 2, 1, 0.5, warmup_steps=45)
    decays = MultiStepLR(make_optimizer(), [20, 30, 40, 50], 0.5)
    expected = [min(1.0, (update + 1) / 45) * rate for update, rate in enumerate(rates(decays, 60))]
    assert rates(schedule, 60) == pytest.approx(expected)


@pytest.mark.parametrize(("first", "every"), [(0, 1), (1, 3), (4, 2)])
def test_decays_come_when_an_epoch_begins(first, every):
    schedule = step_schedule(make_optimizer(), 3, first, every, 0.1)
    seen = rates(schedule, 30)
    expected = [
        0.1 ** len([m for m in range(first, 10, every) if epoch >= m]) for epoch in range(10) for _ in range(3)
    ]
    assert seen == pytest.approx(expected)


def test_all_groups_follow_the_schedule():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": rate} for rate in (1.0, 10.0)]
    schedule = step_schedule(torch.optim.SGD(groups), 2, 1, 1, 0.5, warmup_steps=4)
    for update in range(6):
        scale = min(1.0, (update + 1) / 4) * 0.5 ** (update // 2)
        assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([scale, 10 * scale])
        schedule.optimizer.step()
        schedule.step()


def test_the_scheduler_is_saved_with_the_checkpoint():
    schedule = step_schedule(make_optimizer(), 2, 1, 1, 0.5, warmup_steps=4)
    rates(schedule, 3)
    fresh = step_schedule(make_optimizer(), 2, 1, 1, 0.5, warmup_steps=4)
    fresh.load_state_dict(pickle.loads(pickle.dumps(schedule.state_dict())))
    assert fresh.last_epoch == 3 and rates(fresh, 4)[1:] == rates(schedule, 4)[1:]
