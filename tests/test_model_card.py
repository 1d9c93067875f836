"""The model card: true, complete, and its example runs."""

import json
import math
import re

import pytest
import soundfile
import torch
import yaml
from conftest import make_tiny_config, random_model
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.utils import validate_repo_id

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.model_card import read_run, write_model_card

RESULTS = {
    "validation_accuracy": 0.9,
    "test_accuracy": 0.875,
    "test_mAP": 0.8125,
    "test_mAUC": 0.95,
    "test_d_prime": 2.3262,
    "test_macro_f1": 0.7,
    "test_micro_f1": 0.75,
    "test_classes_without_positives": 2,
    "test_runtime": 1.0,
    "average_test_accuracy": 0.9375,
    "test_baseline_accuracy": 0.5,
    "epoch": 3.0,
}


@pytest.fixture
def model():
    return random_model(make_tiny_config(id2label=dict(enumerate(["dog", "rain, heavy", "bell"]))))


@pytest.fixture
def write(tmp_path, model):
    extractor = ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-7.0, std=4.0)
    folder = tmp_path / "my-model"
    folder.mkdir()

    def write(dataset="./sounds.csv", start="tiny224", results=RESULTS, **options) -> ModelCard:
        write_model_card(folder, model, extractor, dataset, start, results, **options)
        return ModelCard.load(folder / "README.md")

    write.folder, write.extractor = folder, extractor
    return write


def test_every_metric_is_in_the_table(write):
    text = write().text
    for line in (
        "| test | accuracy | 0.8750 |",
        "| validation | accuracy | 0.9000 |",
        "| test | mAP | 0.8125 |",
        "| test | mean AUC | 0.9500 |",
        "| test | d′ | 2.3262 |",
        "| test | macro F1 | 0.7000 |",
        "| test | micro F1 | 0.7500 |",
        "| test | accuracy, weight average | 0.9375 |",
        "| test | linear baseline, accuracy | 0.5000 |",
        "| test | classes without positives, left out of the means | 2 |",
    ):
        assert line in text
    assert "runtime" not in text


def test_the_metadata_report_the_test_split_of_this_model_alone(write):
    data = write().data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "audio-classification")
    assert data.model_name == "my-model"
    reported = {(result.dataset_split, result.metric_name): result.metric_value for result in data.eval_results}
    assert reported["test", "Accuracy"] == 0.875 and {split for split, _ in reported} == {"test"}
    assert 0.9375 not in reported.values() and 0.5 not in reported.values()


@pytest.mark.parametrize("dataset", ["ashraq/esc50", "./data/my sounds (2).csv", "synthetic", None])
def test_the_metadata_hold_what_the_hub_checks(write, dataset):
    """Source: the model card specification of huggingface/hub-docs; the Hub's own check needs the network."""
    write(dataset=dataset, start="MIT/ast", results={**RESULTS, "test_d_prime": math.inf, "test_loss": math.nan})
    metadata = metadata_load(write.folder / "README.md")
    assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    assert ModelCardData(**metadata).to_dict() == metadata
    for name in (*metadata.get("datasets", []), metadata["base_model"]):
        validate_repo_id(name)
    assert metadata.get("datasets") == (["ashraq/esc50"] if dataset == "ashraq/esc50" else None)
    (model,) = metadata["model-index"]
    assert model["name"]
    (result,) = model["results"]
    assert result["task"]["type"] == "audio-classification" and result["dataset"]["name"]
    assert re.fullmatch(r"[\w./-]+", result["dataset"]["type"])
    assert {metric["type"] for metric in result["metrics"]} == {"accuracy", "mAP", "mAUC", "f1"}
    assert all(isinstance(metric["value"], float) and metric["name"] for metric in result["metrics"])


def test_without_test_clips_the_validation_split_is_reported(write):
    card = write(results={"validation_accuracy": 0.9})
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert "The data has no test clips." in card.text


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "eval_mAP"},
            "The validation clips chose the epoch, by the best mAP, so that their own metrics flatter. The test clips",
        ),
        ({"load_best_model_at_end": True}, "The validation clips chose the epoch, by the best loss"),
        (
            {"early_stopping_patience": 3, "metric_for_best_model": "accuracy"},
            "The validation clips chose when to stop, by their accuracy; the model is that of the last epoch.",
        ),
        (
            {"num_train_epochs": 3},
            "The model is that of the last epoch: no clips chose it. The test clips chose nothing.",
        ),
        (None, "What chose the epoch is not known"),
    ],
)
def test_the_card_says_what_chose_the_epoch(write, recipe, words):
    if recipe is not None:
        (write.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert words in write().text


@pytest.mark.parametrize(
    "start, base_model",
    [
        ("MIT/ast-finetuned-audioset-10-10-0.4593", True),
        ("base384", False),
        ("./outputs/demo", False),
        ("a/b.pth", False),
    ],
)
def test_the_base_model_is_named_where_it_is_on_the_hub(write, start, base_model):
    card = write(start=start)
    assert card.data.base_model == (start if base_model else None)
    assert ("random weights" if start == "base384" else f"`{start}`") in card.text


def test_length_strides_features_and_labels_are_said(write, model):
    text = write().text
    assert "the first 0.64 s (64 frames of 10 ms)" in text and "16000 Hz" in text
    assert f"strides 10 (bins), 10 (frames): {model.config.num_tokens} tokens" in text
    assert "32 mel bins, mean -7.0 and deviation 4.0" in text
    assert "`dog`, `rain, heavy`, `bell`" in text


def test_the_example_runs_beside_the_folder(write, model, tmp_path, monkeypatch, capsys):
    card = write()
    model.save_pretrained(write.folder)
    write.extractor.save_pretrained(write.folder)
    noise = torch.rand(22050, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    soundfile.write(tmp_path / "clip.wav", noise.numpy(), 22050)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(repr(label) in printed for label in model.config.id2label.values())


def test_the_recipe_is_in_the_card_and_a_finished_folder_says_what_it_needs(write):
    recipe = {"dataset_name": "ashraq/esc50", "model_name_or_path": "tiny224", "output_dir": "out"}
    (write.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (write.folder / "all_results.json").write_text('{"test_accuracy": 0.5}')
    run = read_run(write.folder)
    assert run == {"dataset": "ashraq/esc50", "start": "tiny224", "results": {"test_accuracy": 0.5}}
    card = write(**run, repo_id="me/there")
    assert yaml.safe_dump(recipe).strip() in card.text and card.data.datasets == ["ashraq/esc50"]
    assert 'model="me/there"' in card.text


def test_several_labels_a_clip_are_said_and_so_is_the_threshold_of_f1(write, model):
    assert "one in a clip" in write().text and "0.5" not in write(results={"test_macro_f1": 0.25}).text
    model.config.problem_type = "multi_label_classification"
    text = write(results={"test_macro_f1": 0.25}).text
    assert "any number in a clip" in text and "at least 0.5" in text


def test_a_metric_stands_beside_its_interval(write):
    ends = {"test_accuracy_low": 0.45, "test_accuracy_high": 0.81, "test_mAP": 0.5}
    text = write(results={"test_accuracy": 0.625, **ends}).text
    assert "| test | accuracy | 0.6250 (0.4500 to 0.8100) |" in text and "| test | mAP | 0.5000 |" in text
    assert "bootstrap over clips" in text and "bootstrap" not in write(results={"test_mAP": 0.5}).text
    (write.folder / "recipe.yaml").write_text("group_pattern: ^([a-z]+)_\n")
    assert "bootstrap over groups" in write(results={"test_accuracy": 0.625, **ends}).text


@pytest.mark.parametrize("name, content", [("recipe.yaml", "- a\n- b\n"), ("all_results.json", "{not json")])
def test_a_folder_whose_records_cannot_be_read_is_one_sentence(write, name, content):
    (write.folder / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        read_run(write.folder)
