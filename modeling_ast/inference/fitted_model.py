"""The folder of a model whose head was fitted to a few labels: an AST like any other, and what to expect of it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, ASTModel
from modeling_ast.data.model_card import CARD_NAME, write_model_card
from modeling_ast.inference.examples import Examples
from modeling_ast.inference.linear_heads import Expectation, LinearHead
from modeling_ast.inference.model_folders import new_model_folder

RESULTS_NAME = "fit_results.json"
CARD_TEXT = """
## How it was fitted

The classifier alone, by logistic regression on embeddings of {stretches} labelled stretches
({counts}); the rest is `{model}`.

{expectation}
"""


@torch.no_grad()
def build_classifier(
    model: ASTModel, head: LinearHead, label_names: list[str], problem_type: str
) -> ASTForAudioClassification:
    """A classifier of a model and a head, whose numbers are those of its layer norm and its linear layer.

    A head is fitted on what a layer norm without weights gives. Its own weights then are 1 / deviation, its biases
    -mean / deviation, and the linear layer is the head's. The layer norm has the body's epsilon, which Transformers'
    own AST takes for it, too.

    Args:
        model: Without a head; the classifier shares its weights.
        head: Of the model's pooled outputs.
        label_names: Of the head's rows.
        problem_type: "single_label_classification" or "multi_label_classification".
    """
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: index for index, name in enumerate(label_names)}
    config.problem_type, config.head_layer_norm_eps = problem_type, None
    config.thresholds = config.unknown_threshold = None
    with torch.device("meta"):
        classifier = ASTForAudioClassification(config)
    classifier.audio_spectrogram_transformer = model
    layers = classifier.classifier.to_empty(device="cpu")
    for parameter, value in (
        (layers.layernorm.weight, 1 / head.deviation),
        (layers.layernorm.bias, -head.mean / head.deviation),
        (layers.dense.weight, head.weight),
        (layers.dense.bias, head.bias),
    ):
        parameter.copy_(torch.from_numpy(np.asarray(value)))
    model._replace_config(classifier.config)
    return classifier.to(model.device, model.dtype).eval()


def summarize_fit(name: str, examples: Examples, head: LinearHead, expected: Expectation | None) -> dict[str, Any]:
    """What was fitted and what to expect, as JSON holds it.

    Args:
        name: Of the model below the head.
        examples: That it was fitted on.
        head: As from `choose_head`.
        expected: Likewise.
    """
    return {
        "model": name,
        "problem_type": examples.problem_type,
        "stretches": len(examples.truth),
        "rows": len(examples.rows),
        "labels": dict(zip(examples.label_names, examples.truth.sum(axis=0).tolist())),
        "C": head.strength,
        "expected": expected and expected.summary(),
    }


def write_fitted_model(
    output: Path,
    classifier: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    results: Mapping[str, Any],
) -> None:
    """Write the folder, which is there when it is whole.

    Args:
        output: New, or empty.
        classifier: As from `build_classifier`.
        extractor: Of its features.
        results: What was fitted, and what to expect.
    """
    with new_model_folder(output, classifier, extractor, RESULTS_NAME, results) as folder:
        write_model_card(folder, classifier, extractor, dataset=None, start=results["model"], results={})
        with open(folder / CARD_NAME, "a", encoding="utf-8") as card:
            card.write(
                CARD_TEXT.format(
                    stretches=results["stretches"],
                    counts=describe_counts(results["labels"]),
                    model=results["model"],
                    expectation=describe_expectation(results["expected"]),
                )
            )


def describe_counts(counts: Mapping[str, int]) -> str:
    """How many stretches each label has."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def describe_expectation(expected: Mapping[str, Any] | None) -> str:
    """What to expect of the head, in a sentence."""
    if expected is None:
        return (
            "What to expect of it cannot be told: a label, or its absence, is in one group, recording or stretch "
            "alone, and no other one can tell how it is recognised. Label a second one of each."
        )
    interval = "no interval can be told, as all draws of the groups are alike"
    if expected["low"] is not None:
        interval = f"95 % interval {expected['low']:.3f} to {expected['high']:.3f}"
    return (
        f"Expect {expected['metric']} {expected['value']:.3f} ({interval}) on others like these: each of "
        f"{expected['groups']} groups was predicted by a head that had not seen it, in {expected['folds']} folds."
    )
