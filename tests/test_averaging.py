"""The mean of weights: the same however it is come by, and a model like any other."""

import pytest
import torch
import transformers
from conftest import make_tiny_config, random_model
from datasets import Dataset
from helpers import StopAt, stack
from transformers import TrainerCallback

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.loading import ModelError
from modeling_ast.training.arguments import ASTTrainingArguments
from modeling_ast.training.averaging import RunningAverage, average_checkpoints
from modeling_ast.training.rows import TrainingRows
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


def make_weights(count: int, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (4, 3), "bias": (4,), "position": ()}
    return [
        {name: (100 + torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def running_average(weights: list[dict[str, torch.Tensor]], decay: float | None = None) -> RunningAverage:
    average = RunningAverage(decay)
    for each in weights:
        average.update(each)
    return average


def assert_mean(actual: dict[str, torch.Tensor], weights: list[dict[str, torch.Tensor]], **tolerance) -> None:
    """By sums, in double precision."""
    assert actual.keys() == weights[0].keys()
    for name, tensor in actual.items():
        expected = torch.stack([each[name].double() for each in weights]).mean(0).float()
        torch.testing.assert_close(tensor, expected, **tolerance)


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Three saved models, each with other weights."""
    for number in range(3):
        model = random_model(make_tiny_config())
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / f"checkpoint-{number}")
    return [str(tmp_path / f"checkpoint-{number}") for number in range(3)]


def save_tiny(folder, **overrides) -> str:
    random_model(make_tiny_config(**overrides)).save_pretrained(folder)
    return str(folder)


def weights_of(folders: list[str]) -> list[dict[str, torch.Tensor]]:
    return [ASTForAudioClassification.from_pretrained(folder).state_dict() for folder in folders]


# While a run goes on


@pytest.mark.parametrize("count", [1, 2, 20])
def test_running_mean_is_the_mean(count):
    weights = make_weights(count)
    average = running_average(weights)
    assert average.count == count
    assert_mean(average.weights, weights, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.999])
def test_exponential_average_is_what_it_says(decay):
    weights = make_weights(20)
    average = RunningAverage(decay)
    expected = {name: tensor.double() for name, tensor in weights[0].items()}
    for number, each in enumerate(weights):
        average.update(each)
        if number:
            expected = {name: decay * mean + (1 - decay) * each[name].double() for name, mean in expected.items()}
    assert average.count == 20
    for name, tensor in average.weights.items():
        torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_mean_of_other_types_is_kept_in_float32(dtype):
    """bfloat16 would lose all digits of weights that differ as little as an epoch's from the last one's."""
    weights = make_weights(20, dtype)
    average = running_average(weights)
    assert {tensor.dtype for tensor in average.weights.values()} == {torch.float32}
    assert_mean(average.weights, weights, rtol=1e-6, atol=0)


def test_mean_stays_what_it_was_when_the_model_trains_on():
    """Weights are the model's own tensors, which the next update changes in place."""
    model = random_model(make_tiny_config())
    average, before = RunningAverage(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average.update(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert_mean(average.weights, [before], rtol=0, atol=0)
    average.update(model.state_dict())
    assert_mean(average.weights, [before, model.state_dict()])


def test_weights_are_left_as_they_were():
    weights = make_weights(3)
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in weights]
    running_average(weights)
    for each, other in zip(weights, before):
        assert all(torch.equal(each[name], other[name]) for name in each)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("cut", [1, 3])
def test_an_interrupted_average_goes_on_as_if_it_had_not_been(cut, decay, tmp_path):
    weights = make_weights(5)
    running_average(weights[:cut], decay).save(tmp_path / "average.safetensors")
    resumed = RunningAverage(decay)
    resumed.load(tmp_path / "average.safetensors")
    assert resumed.count == cut
    for each in weights[cut:]:
        resumed.update(each)
    uninterrupted = running_average(weights, decay)
    assert resumed.count == uninterrupted.count == 5
    assert all(torch.equal(tensor, uninterrupted.weights[name]) for name, tensor in resumed.weights.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bias": torch.zeros(5)}, r"bias is \(4,\) in the first model and \(5,\) in number 3"),
        ({"bias": None}, r"bias is \(4,\) in the first model and missing in number 3"),
        ({"more": torch.zeros(2)}, r"more is missing in the first model and \(2,\) in number 3"),
    ],
)
def test_weights_of_another_model_are_refused_and_change_nothing(change, words):
    weights = make_weights(3)
    average = running_average(weights[:2])
    other = {name: tensor for name, tensor in {**weights[2], **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=words):
        average.update(other)
    average.update(weights[2])
    assert average.count == 3
    assert_mean(average.weights, weights)


# Of checkpoints


def test_average_of_checkpoints_is_the_mean_of_their_weights(folders):
    average = average_checkpoints(folders)
    assert_mean(average.state_dict(), weights_of(folders))
    assert not average.training


def test_average_of_one_is_itself(folders):
    average, (expected,) = average_checkpoints(folders[:1]).state_dict(), weights_of(folders[:1])
    assert average.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in average.items())


def test_average_of_copies_is_each_of_them(folders):
    average, (expected,) = average_checkpoints(folders[:1] * 5).state_dict(), weights_of(folders[:1])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in average.items())


def test_average_does_not_depend_on_the_order(folders):
    forwards, backwards = average_checkpoints(folders), average_checkpoints(folders[::-1])
    torch.testing.assert_close(forwards.state_dict(), backwards.state_dict())


def test_average_loads_in_stock_transformers(folders, tmp_path, input_values):
    average = average_checkpoints(folders)
    average.config.head_layer_norm_eps = average.config.layer_norm_eps  # the stock class knows one for both
    average.save_pretrained(tmp_path / "average")
    stock, info = transformers.ASTForAudioClassification.from_pretrained(
        tmp_path / "average", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again = ASTForAudioClassification.from_pretrained(tmp_path / "average").eval()
    with torch.no_grad():
        logits = again(input_values).logits
        torch.testing.assert_close(stock.eval()(input_values).logits, logits, atol=1e-4, rtol=1e-4)
    assert_mean(again.state_dict(), weights_of(folders))


def test_average_of_half_precision_checkpoints_is_their_mean(folders, tmp_path):
    for number, folder in enumerate(folders):
        ASTForAudioClassification.from_pretrained(folder).bfloat16().save_pretrained(tmp_path / f"half-{number}")
    halves = [str(tmp_path / f"half-{number}") for number in range(3)]
    average = average_checkpoints(halves).state_dict()
    expected = weights_of(halves)
    for name, tensor in average.items():
        mean = torch.stack([each[name].double() for each in expected]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=2**-8, atol=1e-30)  # at worst rounded once


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"hidden_size": 64}, r"Expected weights of the same names and shapes, but .* in number 2"),
        ({"num_hidden_layers": 1}, r"in the first model and missing in number 2"),
        ({"max_length": 80}, "expected models with max_length 64, as the first, but it has 80"),
        (
            {"max_length": 65},
            "expected models with max_length 64, as the first, but it has 65",
        ),  # as many patches
        ({"num_mel_bins": 48}, "expected models with num_mel_bins 32, as the first, but it has 48"),
        ({"time_stride": 9}, "expected models with time_stride 10, as the first, but it has 9"),
        ({"frequency_stride": 11}, "expected models with frequency_stride 10, as the first, but it has 11"),
        ({"num_attention_heads": 2}, "expected models with num_attention_heads 4, as the first, but it has 2"),
        ({"hidden_act": "relu"}, "expected models with hidden_act gelu, as the first, but it has relu"),
        ({"num_labels": 4}, "the same labels in the same order, but it has others"),
        ({"id2label": dict(enumerate("edcba"))}, "the same labels in the same order, but it has others"),
    ],
)
def test_models_of_another_kind_are_refused(folders, tmp_path, overrides, words):
    with pytest.raises(ModelError, match=f"other cannot be used: .*{words}"):
        average_checkpoints([folders[0], save_tiny(tmp_path / "other", **overrides)])


def test_no_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected the folders of models to average, got none"):
        average_checkpoints([])
    with pytest.raises(ModelError, match="nowhere cannot be used"):
        average_checkpoints([tmp_path / "nowhere"])


# Of a run


def make_trainer(folder, **settings) -> ASTTrainer:
    """Four epochs of 2 updates."""
    config = make_tiny_config()
    input_values = torch.randn(8, config.max_length, config.num_mel_bins, generator=torch.Generator().manual_seed(0))
    rows = Dataset.from_dict(
        {"waveform": [0.0] * 8, "input_values": input_values.numpy(), "labels": [0, 1, 2, 3] * 2}
    ).with_format("torch")
    settings = {"save_strategy": "epoch", "num_train_epochs": 4, "learning_rate": 1e-3} | settings
    arguments = ASTTrainingArguments(
        str(folder),
        do_train=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        global_batch_size=4,
        **settings,
    )
    return ASTTrainer(
        model=random_model(config), args=arguments, train_dataset=TrainingRows(rows), train_collator=stack
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"weight_average_start": 2, "weight_average_end": 3}, (4, 6)),
        ({"weight_average_start": 3}, (6, 8)),
        ({"weight_average_start": 1, "weight_average_end": 1}, (2,)),
        ({"weight_average_start": 3, "samples_per_epoch": 3}, (3, 4)),
    ],
)
def test_a_run_averages_its_epochs(tmp_path, settings, updates):
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    assert trainer.average.count == len(updates)
    assert_mean(trainer.average.weights, weights_of([tmp_path / f"checkpoint-{update}" for update in updates]))


@pytest.mark.parametrize(("first", "last"), [(2, 7), (1, None)])
def test_a_run_averages_the_weights_after_every_so_many_updates(tmp_path, first, last):
    """Wherever epochs end; the average goes on where the run was stopped."""
    settings = {"weight_average_start": first, "weight_average_end": last, "weight_average_steps": 3}
    whole, weights = make_trainer(tmp_path / "whole", **settings, save_strategy="no"), Weights()
    whole.add_callback(weights)
    whole.train()
    taken = [update for update in (3, 6) if first <= update <= (last or 8)]
    assert whole.average.count == len(taken) == 2
    mean = {name: sum(weights.seen[update - 1][name] for update in taken) / 2 for name in weights.seen[0]}
    torch.testing.assert_close(whole.average.weights, mean)
    settings |= {"save_strategy": "steps", "save_steps": 4}
    interrupted = make_trainer(tmp_path / "parts", **settings)
    interrupted.add_callback(StopAt(5))
    interrupted.train()
    resumed = make_trainer(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert resumed.average.count == 2
    torch.testing.assert_close(resumed.average.weights, whole.average.weights, rtol=0, atol=0)


def test_a_run_averages_nothing_where_nothing_is_said(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="no", num_train_epochs=1)
    trainer.train()
    assert trainer.average.count == 0


@pytest.mark.slow
@pytest.mark.parametrize("update", [4, 5], ids=["after an epoch", "within one"])
def test_an_interrupted_run_has_the_average_of_an_uninterrupted_one(tmp_path, update):
    """Whatever became of the checkpoints of the epochs before."""
    whole = make_trainer(tmp_path / "whole", weight_average_start=1, save_strategy="no")
    whole.train()
    settings = {"weight_average_start": 1, "save_strategy": "steps", "save_steps": update}
    interrupted = make_trainer(tmp_path / "parts", **settings)
    interrupted.add_callback(StopAt(update))
    interrupted.train()
    resumed = make_trainer(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{update}"))
    assert resumed.average.count == whole.average.count == 4
    torch.testing.assert_close(resumed.average.weights, whole.average.weights, rtol=0, atol=0)


class Weights(TrainerCallback):
    """Keeps the weights after every update."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def test_a_run_averages_its_updates_exponentially(tmp_path):
    trainer, weights = make_trainer(tmp_path, ema_decay=0.7, save_strategy="no", num_train_epochs=2), Weights()
    trainer.add_callback(weights)
    trainer.train()
    trainer.processing_class = ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    trainer.save_end({})
    expected = weights.seen[0]
    for each in weights.seen[1:]:
        expected = {name: 0.7 * mean + 0.3 * each[name] for name, mean in expected.items()}
    assert trainer.average.count == len(weights.seen) == 4
    saved = ASTForAudioClassification.from_pretrained(tmp_path / "weight_average").state_dict()
    torch.testing.assert_close(saved, expected)


@pytest.mark.parametrize(
    ("decay", "told"), [(0.99, ["still holds 90%", "ema_decay up to 0.741"]), (0.7, []), (None, [])]
)
def test_an_average_that_is_mostly_of_its_beginning_is_told(caplog, decay, told):
    """After 11 updates, of which the first one is where it begins: 0.99 ** 10, and 0.05 ** (1 / 10)."""
    average = RunningAverage(decay)
    for number in range(11):
        average.update({"weight": torch.tensor([float(number)])})
    average.warn_if_short()
    assert len(caplog.records) == bool(told) and all(words in caplog.text for words in told)


@pytest.mark.parametrize("update", [2, 3], ids=["after an epoch", "within one"])
def test_an_interrupted_run_has_the_exponential_average_of_an_uninterrupted_one(tmp_path, update):
    settings = {"ema_decay": 0.7, "num_train_epochs": 2}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    settings |= {"save_strategy": "steps", "save_steps": update}
    interrupted = make_trainer(tmp_path / "parts", **settings)
    interrupted.add_callback(StopAt(update))
    interrupted.train()
    resumed = make_trainer(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{update}"))
    assert resumed.average.count == whole.average.count == 4
    torch.testing.assert_close(resumed.average.weights, whole.average.weights, rtol=0, atol=0)
