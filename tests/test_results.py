"""results.csv: a line an epoch, of its model and of the mean of all predictions, there to read at any time."""

import shutil

import numpy as np
import pytest
import torch
from conftest import make_tiny_config, random_model
from datasets import Dataset
from helpers import StopAt, read_csv, stack
from scipy.special import expit, ndtri, softmax
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from modeling_ast.data.metrics import compute_metrics, to_probabilities
from modeling_ast.training.arguments import ASTTrainingArguments
from modeling_ast.training.results import RESULTS_NAME, EpochRecord
from modeling_ast.training.rows import TrainingRows
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

METRICS = ["accuracy", "mAP", "mAUC", "d_prime", "macro_f1", "micro_f1"]
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
CLIPS, LABELS = 40, 4


def make_labels(problem_type: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    if problem_type == SINGLE:
        return generator.permutation(np.arange(CLIPS) % LABELS)
    return (generator.random((CLIPS, LABELS)) < 0.4).astype(float)


def make_probabilities(count: int, problem_type: str) -> list[np.ndarray]:
    """Of epochs that know little, each something else."""
    generator = np.random.default_rng(1)
    labels = make_labels(problem_type)
    truth = np.eye(LABELS)[labels] if problem_type == SINGLE else labels
    logits = [generator.normal(size=truth.shape) * 2 + truth for _ in range(count)]
    return [(softmax(each, axis=1) if problem_type == SINGLE else expit(each)).astype(np.float32) for each in logits]


def add(record: EpochRecord, epoch: int, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """As the trainer does at the end of an epoch."""
    measured = {**compute_metrics(probabilities, labels, record.problem_type), "loss": 0.5 / epoch, "runtime": 3.0}
    row = {"epoch": float(epoch), "learning_rate": 1e-5 / epoch, "train_loss": 0.7 / epoch}
    record.add(row, measured, probabilities, labels)


def run(folder, problem_type: str, epochs: int) -> EpochRecord:
    record = EpochRecord(folder, problem_type)
    for epoch, probabilities in enumerate(make_probabilities(epochs, problem_type), 1):
        add(record, epoch, probabilities, make_labels(problem_type))
    return record


def read(folder) -> list[dict[str, str]]:
    return read_csv(folder / RESULTS_NAME)


def metrics_by_hand(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """By scikit-learn, from the definitions."""
    is_single = labels.ndim == 1
    truth = np.eye(LABELS)[labels] if is_single else labels
    predicted = np.eye(LABELS)[probabilities.argmax(1)] if is_single else probabilities >= 0.5
    area = roc_auc_score(truth, probabilities, average="macro")
    metrics = {
        "mAP": average_precision_score(truth, probabilities, average="macro"),
        "mAUC": area,
        "d_prime": np.sqrt(2) * ndtri(area),
        "macro_f1": f1_score(truth, predicted, average="macro"),
        "micro_f1": f1_score(truth, predicted, average="micro"),
    }
    return metrics | ({"accuracy": (probabilities.argmax(1) == labels).mean()} if is_single else {})


# The file


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_columns_say_what_they_hold(tmp_path, problem_type):
    run(tmp_path, problem_type, 2)
    names = METRICS if problem_type == SINGLE else METRICS[1:]  # several labels a clip have no accuracy
    expected = ["epoch", "learning_rate", "train_loss", "validation_loss", *names, *(f"cum_{name}" for name in names)]
    assert list(read(tmp_path)[0]) == expected


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_each_line_holds_its_epochs_metrics_and_those_of_the_mean_of_all_predictions_so_far(tmp_path, problem_type):
    run(tmp_path, problem_type, 4)
    epochs, labels = make_probabilities(4, problem_type), make_labels(problem_type)
    rows = read(tmp_path)
    assert len(rows) == 4
    for number, row in enumerate(rows, 1):
        assert [float(row[name]) for name in ("epoch", "learning_rate", "train_loss", "validation_loss")] == (
            pytest.approx([number, 1e-5 / number, 0.7 / number, 0.5 / number])
        )
        own = metrics_by_hand(epochs[number - 1], labels)
        mean = metrics_by_hand(np.mean([each.astype(np.float64) for each in epochs[:number]], axis=0), labels)
        assert {name: float(row[name]) for name in own} == pytest.approx(own, abs=1e-9)
        assert {name: float(row[f"cum_{name}"]) for name in mean} == pytest.approx(mean, abs=1e-9)
    assert rows[0]["mAP"] == rows[0]["cum_mAP"] and rows[3]["mAP"] != rows[3]["cum_mAP"]


def test_mean_of_the_predictions_knows_more_than_each(tmp_path):
    """What it is for: errors that differ from epoch to epoch cancel."""
    run(tmp_path, MULTI, 10)
    rows = read(tmp_path)
    assert float(rows[-1]["cum_mAP"]) > max(float(row["mAP"]) for row in rows) + 0.02


def test_file_is_whole_after_each_epoch(tmp_path):
    record = EpochRecord(tmp_path, SINGLE)
    assert not (tmp_path / RESULTS_NAME).exists()
    for epoch, probabilities in enumerate(make_probabilities(3, SINGLE), 1):
        add(record, epoch, probabilities, make_labels(SINGLE))
        rows = read(tmp_path)
        assert len(rows) == epoch and None not in rows[-1].values()
        assert [path.name for path in tmp_path.iterdir()] == [RESULTS_NAME]  # nothing half-written beside it


def test_predictions_are_left_as_they_were(tmp_path):
    probabilities = make_probabilities(1, SINGLE)[0]
    before = probabilities.copy()
    record = EpochRecord(tmp_path, SINGLE)
    for epoch in (1, 2):
        add(record, epoch, probabilities, make_labels(SINGLE))
    assert np.array_equal(probabilities, before)


@pytest.mark.parametrize("cut", [1, 3])
def test_an_interrupted_record_goes_on_as_if_it_had_not_been(tmp_path, cut):
    folders = {name: tmp_path / name for name in ("uninterrupted", "resumed", "checkpoint")}
    for folder in folders.values():
        folder.mkdir()
    run(folders["uninterrupted"], MULTI, 5)
    epochs, labels = make_probabilities(5, MULTI), make_labels(MULTI)
    interrupted = run(folders["resumed"], MULTI, cut)
    interrupted.save_state(folders["checkpoint"])
    add(interrupted, cut + 1, epochs[cut], labels)  # after the checkpoint: this epoch comes again
    resumed = EpochRecord(folders["resumed"], MULTI)
    resumed.load_state(folders["checkpoint"])
    assert len(read(folders["resumed"])) == cut  # what is not in the checkpoint is no longer in the file
    for epoch in range(cut + 1, 6):
        add(resumed, epoch, epochs[epoch - 1], labels)
    assert read(folders["resumed"]) == read(folders["uninterrupted"])


def test_a_checkpoint_before_the_first_evaluation_brings_nothing(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    EpochRecord(tmp_path, SINGLE).save_state(tmp_path / "checkpoint")
    record = EpochRecord(tmp_path, SINGLE)
    record.load_state(tmp_path / "checkpoint")
    assert record.rows == [] and not (tmp_path / RESULTS_NAME).exists()
    add(record, 1, make_probabilities(1, SINGLE)[0], make_labels(SINGLE))
    assert len(read(tmp_path)) == 1


def test_a_checkpoint_of_another_trainer_leaves_an_empty_record(tmp_path):
    record = EpochRecord(tmp_path, SINGLE)
    record.load_state(tmp_path)
    assert record.rows == [] and record.mean_probabilities is None


def test_a_folder_that_moved_takes_its_record_along(tmp_path):
    (tmp_path / "old").mkdir()
    run(tmp_path / "old", SINGLE, 2).save_state(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    record = EpochRecord(tmp_path / "new", SINGLE)
    record.load_state(tmp_path / "new")
    add(record, 3, make_probabilities(3, SINGLE)[2], make_labels(SINGLE))
    assert [row["epoch"] for row in read(tmp_path / "new")] == ["1.0", "2.0", "3.0"]


def test_a_metric_that_one_epoch_lacks_is_empty_there(tmp_path):
    """Where an AUC is 1, d' is infinite and left out."""
    record, labels = EpochRecord(tmp_path, SINGLE), make_labels(SINGLE)
    add(record, 1, np.eye(LABELS, dtype=np.float32)[labels], labels)
    add(record, 2, make_probabilities(1, SINGLE)[0], labels)
    first, second = read(tmp_path)
    assert first["d_prime"] == "" and float(second["d_prime"]) > 0
    assert first["mAP"] == "1.0"


# Of a run: 10 clips in batches of 4, completed to 3 updates an epoch


def make_trainer(folder, **settings) -> ASTTrainer:
    config = make_tiny_config(problem_type=SINGLE)
    generator = torch.Generator().manual_seed(0)
    input_values = torch.randn(10, config.max_length, config.num_mel_bins, generator=generator)
    rows = {"waveform": [0.0] * 10, "input_values": input_values.numpy(), "labels": [0, 1, 2, 3, 4] * 2}
    rows = Dataset.from_dict(rows).with_format("torch")
    settings = {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "logging_steps": 1,
        "num_train_epochs": 4,
    } | settings
    arguments = ASTTrainingArguments(
        str(folder),
        use_cpu=True,
        do_train=True,
        report_to="none",
        disable_tqdm=True,
        global_batch_size=4,
        learning_rate=1e-3,
        **settings,
    )
    return ASTTrainer(
        model=random_model(config),
        args=arguments,
        train_dataset=TrainingRows(rows),
        eval_dataset=rows,
        data_collator=stack,
        train_collator=stack,
        compute_metrics=lambda p: compute_metrics(to_probabilities(p.predictions, SINGLE), p.label_ids, SINGLE),
        record=EpochRecord(folder, SINGLE),
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, one_thread):
    """A run that nothing interrupts."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), save_strategy="no")
    trainer.train()
    return trainer


def test_a_run_records_its_losses_and_rates(whole_run):
    rows, history = read(whole_run.record.folder), whole_run.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert len(rows) == len(evaluations) == 4 and len(losses) == 12
    for number, (row, evaluation) in enumerate(zip(rows, evaluations), 1):
        last_update = 3 * number - 1
        assert float(row["epoch"]) == number
        assert float(row["learning_rate"]) == pytest.approx(1e-3 * (1 - last_update / 12))  # of the linear schedule
        assert float(row["train_loss"]) == pytest.approx(np.mean(losses[3 * number - 3 : 3 * number]), rel=1e-4)
        assert float(row["validation_loss"]) == pytest.approx(evaluation["eval_loss"])
        assert float(row["mAP"]) == pytest.approx(evaluation["eval_mAP"])


@pytest.mark.slow
def test_accumulation_does_not_change_what_is_recorded(tmp_path, whole_run):
    make_trainer(tmp_path, gradient_accumulation_steps=2, save_strategy="no").train()
    for row, expected in zip(read(tmp_path), read(whole_run.record.folder), strict=True):
        for name in ("epoch", "learning_rate", "train_loss", "validation_loss", "mAP", "cum_mAP"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3)


def test_evaluation_after_training_is_not_recorded(whole_run):
    before = read(whole_run.record.folder)
    whole_run.evaluate()
    assert read(whole_run.record.folder) == before and len(before) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "settings"),
    [(6, {}), (5, {"save_strategy": "steps", "save_steps": 5})],
    ids=["after an epoch", "within one"],
)
def test_an_interrupted_run_records_what_an_uninterrupted_one_does(tmp_path, whole_run, update, settings):
    interrupted = make_trainer(tmp_path, **settings)
    interrupted.add_callback(StopAt(update))
    interrupted.train()
    make_trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{update}"))
    assert read(tmp_path) == read(whole_run.record.folder)
