"""The members of an ensemble: models of different sizes, and checkpoints of the original, with labels in common."""

import logging
from collections.abc import Sequence
from pathlib import Path

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, load_original_checkpoint
from modeling_ast.conversion import checkpoint_layout
from modeling_ast.data.classifiers import label_order, load_classifier
from modeling_ast.data.model_arguments import FEATURE_KEYS, ModelArguments
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.splits import read_label_names, read_splits
from modeling_ast.loading import ModelError, as_model_error

logger = logging.getLogger(__name__)


def find_label_names(models: Sequence[str], data_args: DataArguments, multi_label: bool) -> list[str]:
    """Those of the models; where none of them names its labels, those of the data, in their order.

    Args:
        models: Folders, names on the Hub, or checkpoints of the original, which name no labels.
        data_args: Of the data.
        multi_label: Whether a clip may have several labels.

    Raises:
        ModelError: A model that cannot be used, or has other labels than the first one.
        DataError: As from `read_splits`.
    """
    named = {name: read_label_names(name) for name in models if not Path(name).is_file()}
    if not named:
        return read_splits(data_args, multi_label).label_names
    label_names = next(iter(named.values()))
    for name, own in named.items():  # before any of them predicts
        try:
            label_order(dict(enumerate(own)), label_names)
        except ValueError as error:
            raise ModelError(f"{name} cannot be used: {error}") from error
    return label_names


def load_member(
    name: str, model_args: ModelArguments, label_names: Sequence[str]
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """A classifier and its feature extractor.

    Args:
        name: Folder, name on the Hub, or checkpoint of the original.
        model_args: Of a recipe: what a model does not say of itself.
        label_names: Of the data; a checkpoint of the original gets them.

    Raises:
        ModelError: A model that cannot be used, or one for regression.
    """
    if Path(name).is_file():
        return _load_original(name, model_args, label_names)
    return load_classifier(name, model_args.problem_type)


def _load_original(
    name: str, model_args: ModelArguments, label_names: Sequence[str]
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    bins = model_args.given(["num_mel_bins"])
    with as_model_error(name):
        model = load_original_checkpoint(name, **bins, id2label=dict(enumerate(label_names)))
        extractor_class = checkpoint_layout(name).extractor_class
    logger.warning(f"{name} names no labels: its outputs are taken for those of the data, in their order.")
    options = ASTFeatureExtractor.options_for(model.config) | model_args.given(FEATURE_KEYS)
    return model, extractor_class(**options)
