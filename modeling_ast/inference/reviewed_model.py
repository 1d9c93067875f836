"""What a review leaves behind: the model that was fitted, and the recipe that trains the whole network."""

import itertools
from pathlib import Path

import yaml

from modeling_ast import ASTFeatureExtractor, ASTModel
from modeling_ast.data.files import written_beside
from modeling_ast.inference.fitted_model import build_classifier, summarize_fit, write_fitted_model
from modeling_ast.inference.review import Review

RECIPE_NAME = "train.yaml"
_RECIPE = """\
# The whole network on the labels of {labels}, from the head that was fitted on {count} of them.
#
#   modeling-ast check {path}
#   modeling-ast train {path}

{keys}"""


def write_reviewed(review: Review, model: ASTModel, extractor: ASTFeatureExtractor, name: str, output: Path) -> str:
    """Fit a head on all answers and write its model and a recipe, and say where.

    Args:
        review: With answers.
        model: The store's.
        extractor: Of its features.
        name: Of the model.
        output: Folder; the model's in it, a new one each time, says how many labels it knows.
    """
    if not review.fit():
        return "Nothing to write yet: two labels, or one and stretches without it, tell something apart."
    examples, count = review.examples, len(review.examples.truth)
    names = (f"model_{count}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    folder = next(folder for folder in map(output.joinpath, names) if not folder.exists())
    classifier = build_classifier(model, review.head, examples.label_names, examples.problem_type)
    write_fitted_model(folder, classifier, extractor, summarize_fit(name, examples, review.head, review.expected))
    path = output / RECIPE_NAME
    keys = {
        "model_name_or_path": str(folder.absolute()),
        "dataset_name": str(review.answers.path.absolute()),
        "problem_type": examples.problem_type,
        "max_length": extractor.max_length,
        "window_seconds": round(extractor.seconds(extractor.max_length), 3),
        "output_dir": str((output / "trained").absolute()),
        "do_train": True,
        "num_train_epochs": 20,
        "global_batch_size": min(16, max(2, count // 4)),
        "learning_rate": 1e-5,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_strategy": "epoch",
    }
    text = yaml.safe_dump(keys, sort_keys=False)
    with written_beside(path) as unfinished:
        unfinished.write_text(
            _RECIPE.format(labels=review.answers.path.name, count=count, path=path, keys=text), encoding="utf-8"
        )
    return f"The model is in {folder}; {path} is the recipe that trains the whole network on these labels."
