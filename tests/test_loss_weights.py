"""Weights of labels in the loss: scikit-learn's and torch's, whatever an update is divided into."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_config, random_model
from datasets import Dataset
from helpers import read_csv, stack
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.clip_tables import AudioSplits, ClipCounts
from modeling_ast.data.loss_weights import LossWeights, balanced_class_weights, balanced_pos_weight
from modeling_ast.data.model_card import write_model_card
from modeling_ast.data.recipes import RecipeError
from modeling_ast.modeling_ast import classification_loss
from modeling_ast.training.arguments import ASTTrainingArguments, parse_arguments
from modeling_ast.training.augment import smooth_labels
from modeling_ast.training.losses import weighted_loss
from modeling_ast.training.rows import TrainingRows
from modeling_ast.training.sampling import count_clips
from modeling_ast.training.stages import _find_loss_weights
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = list("abcde")
SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"


def of_table(labels: list, **keys) -> LossWeights | None:
    """What the recipe's keys make of training clips with these labels; held-out ones have others."""
    argv = ["--dataset_name=x", "--output_dir=x", "--use_cpu=true", f"--problem_type={SEVERAL}"]
    training = parse_arguments([*argv, *(f"--{key}={value}" for key, value in keys.items())]).training
    held_out = Dataset.from_dict({"labels": labels[:1] * 50})
    return _find_loss_weights(training, AudioSplits(Dataset.from_dict({"labels": labels}), held_out, None, NAMES))


def test_balanced_weights_are_scikit_learns():
    labels = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0)).square().clamp(max=4).tolist()
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    weights = of_table(labels, class_weights="balanced").class_weights
    np.testing.assert_allclose(weights[np.unique(labels)], expected, rtol=1e-12)
    assert weights[labels].mean() == pytest.approx(1)  # the loss keeps its size
    several = [[0], [0, 1], [0, 4], [], [0, 1, 4]]
    flat = [label for clip in several for label in clip]
    weights = of_table(several, class_weights="balanced").class_weights
    np.testing.assert_allclose(
        weights[[0, 1, 4]], compute_class_weight("balanced", classes=np.array([0, 1, 4]), y=flat)
    )


def test_balanced_positives_weigh_as_much_as_negatives():
    labels = [[0], [0, 1], [0, 4], [], [0, 1, 4], [0, 4]]
    weights = of_table(labels, pos_weight="balanced").pos_weight
    np.testing.assert_allclose(weights, [1 / 5, 4 / 2, 1, 1, 3 / 3])
    assert balanced_pos_weight(ClipCounts(10**6, np.array([1, 10**5]))).tolist() == [10**6 - 1, 9]


def test_labels_without_clips_and_in_every_clip_have_finite_weights():
    assert balanced_class_weights(np.array([4, 0, 12])).tolist() == [2, 1, 2 / 3]
    assert balanced_class_weights(np.zeros(3, int)).tolist() == [1, 1, 1]
    assert balanced_pos_weight(ClipCounts(4, np.array([4, 0, 1]))).tolist() == [1, 1, 3]
    assert count_clips(Dataset.from_dict({"labels": [[0, 2], [], [2]]}), 4) == ClipCounts(
        3, pytest.approx([1, 0, 2, 0]), 1
    )


def test_a_number_weighs_all_labels_and_nothing_is_nothing():
    assert of_table([[0], [1]]) is None
    weights = of_table([[0], [1]], pos_weight="3.0", class_weights="balanced")
    assert weights.pos_weight.tolist() == [3] * 5 and weights.class_weights.tolist() == [1] * 5
    assert str(weights) == "class_weights 1; pos_weight 3"


@pytest.fixture
def drawn() -> dict:
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(6, 5, generator=generator)
    return {
        "logits": 3 * torch.randn(6, 5, generator=generator),
        "hard": torch.randint(5, (6,), generator=generator),
        "soft": soft / soft.sum(dim=1, keepdim=True),
        "several": soft,
        "weights": LossWeights(NAMES, np.array([0.1, 2, 1, 7, 0.5]), np.array([3.0, 1, 0.2, 9, 100])),
    }


def test_the_weighted_loss_is_torchs(drawn):
    """Of class indices as a sum divided by clips, where torch divides by the weights of the batch."""
    logits, hard, soft, weights = drawn["logits"], drawn["hard"], drawn["soft"], drawn["weights"]
    classes, positives = (torch.tensor(each).float() for each in (weights.class_weights, weights.pos_weight))
    total = F.cross_entropy(logits, hard, weight=classes, reduction="sum")
    torch.testing.assert_close(weighted_loss(logits, hard, weights, False), total / 6)
    torch.testing.assert_close(weighted_loss(logits, soft, weights, False), F.cross_entropy(logits, soft, classes))
    smooth = smooth_labels(hard, 0.2, 5, False)
    total = F.cross_entropy(logits, hard, weight=classes, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(weighted_loss(logits, smooth, weights, False), total / 6)
    expected = F.binary_cross_entropy_with_logits(logits, drawn["several"], weight=classes, pos_weight=positives)
    torch.testing.assert_close(weighted_loss(logits, drawn["several"], weights, True), expected)


def test_weights_of_one_change_nothing(drawn):
    ones = LossWeights(NAMES, np.ones(5), np.ones(5))
    for labels, kind in (("hard", SINGLE), ("soft", SINGLE), ("several", SEVERAL)):
        found = weighted_loss(drawn["logits"], drawn[labels], ones, kind == SEVERAL)
        torch.testing.assert_close(found, classification_loss(drawn["logits"], drawn[labels], kind))


@pytest.mark.parametrize("kind", [SINGLE, SEVERAL])
def test_an_update_does_not_depend_on_how_it_is_divided(tmp_path, kind, drawn):
    """With batches of one clip too, of which torch's weighted mean is the loss without weights."""
    config, labels = make_tiny_config(problem_type=kind), torch.tensor([0, 0, 0, 0, 0, 1, 2, 3])
    labels = labels if kind == SINGLE else F.one_hot(labels, 5)
    columns = {"input_values": torch.randn(8, 64, 32).numpy(), "labels": labels.numpy(), "waveform": [0.0] * 8}
    rows = Dataset.from_dict(columns).with_format("torch")

    def train(steps: int, weights: LossWeights | None) -> tuple[list[float], dict]:
        args = ASTTrainingArguments(
            str(tmp_path), use_cpu=True, report_to="none", do_train=True, per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps, max_steps=1, logging_steps=1, save_strategy="no", disable_tqdm=True,
            learning_rate=0.1, optim="sgd", label_smoothing_factor=0.1,
        )  # fmt: skip
        options = {"train_dataset": TrainingRows(rows), "train_collator": stack, "loss_weights": weights}
        trainer = ASTTrainer(model=random_model(config), args=args, **options)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.model.state_dict()

    losses, expected = train(1, drawn["weights"])
    found = train(8, drawn["weights"])
    assert found[0] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5)
    assert abs(train(1, None)[0][0] / losses[0] - 1) > 0.01


def test_evaluation_is_without_weights(tmp_path, drawn):
    args = ASTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    model = random_model(make_tiny_config(problem_type=SINGLE))
    trainer = ASTTrainer(model=model, args=args, data_collator=stack, loss_weights=drawn["weights"])
    inputs = {"input_values": torch.randn(6, 64, 32), "labels": drawn["hard"]}
    loss, outputs = trainer.compute_loss(model.eval(), dict(inputs), return_outputs=True)
    torch.testing.assert_close(loss, classification_loss(outputs.logits, drawn["hard"], SINGLE))
    loss, outputs = trainer.compute_loss(model.train(), dict(inputs), return_outputs=True)
    torch.testing.assert_close(loss, weighted_loss(outputs.logits, drawn["hard"], drawn["weights"], False))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("--class_weights=rare", "class_weights"),
        ("--pos_weight=0", r"Expected pos_weight balanced or a number in \(0, inf\), got 0"),
        ("--pos_weight=many", "Expected pos_weight balanced or a number .* got many"),
        ("--pos_weight=nan", "Expected pos_weight balanced or a number .* got nan"),
        ("--pos_weight=2", "pos_weight has no effect with one label a clip"),
        ("--class_weights=balanced --class_balanced_sampling=true", "got class_balanced_sampling and class_weights"),
        (
            f"--class_weights=balanced --pos_weight=balanced --problem_type={SEVERAL}",
            "got class_weights and pos_weight",
        ),
        ("--class_weights=balanced --teacher_targets=x", "class_weights has no place beside teacher_targets"),
        ("--class_weights=balanced --unlabelled=true", "class_weights needs labels"),
    ],
)
def test_weights_that_make_no_sense_are_refused(keys, words):
    with pytest.raises(RecipeError, match=words):
        parse_arguments(["--dataset_name=x", "--output_dir=x", "--use_cpu=true", *keys.split()])


def test_a_number_goes_with_balanced_draws():
    keys = ["--pos_weight=2", "--class_balanced_sampling=true", f"--problem_type={SEVERAL}"]
    assert parse_arguments(["--dataset_name=x", "--output_dir=x", "--use_cpu=true", *keys]).training.pos_weight == "2"


def test_weights_are_kept_and_in_the_card(tmp_path, drawn):
    weights = LossWeights(["a", "NA", "x;y", "01", "e"], drawn["weights"].class_weights)
    weights.write(tmp_path / "loss_weights.csv")
    again = LossWeights.read(tmp_path / "loss_weights.csv")
    assert again.label_names == weights.label_names and again.pos_weight is None
    assert again.class_weights.tolist() == weights.class_weights.tolist()
    assert read_csv(tmp_path / "loss_weights.csv")[1] == {"label": "NA", "class_weight": "2.0", "pos_weight": ""}
    model = random_model(make_tiny_config())
    write_model_card(tmp_path, model, ASTFeatureExtractor(max_length=64, num_mel_bins=32), None, None, {})
    card = (tmp_path / "README.md").read_text()
    assert "weighed in the loss of training: class_weights 0.1 (a), 2 (NA), 1 (x;y), 7 (01), 0.5 (e)." in card
    many = LossWeights([str(number) for number in range(30)], np.linspace(1, 2, 30))
    assert str(many) == "class_weights from 1 (0) to 2 (29)"
