"""What a run starts from: the model and the feature extractor, from the arguments."""

import logging
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    load_imagenet_checkpoint,
    load_original_checkpoint,
)
from modeling_ast.configuration_ast import SIZES
from modeling_ast.conversion import checkpoint_layout, imagenet_sizes
from modeling_ast.data.model_arguments import FEATURE_KEYS, ModelArguments
from modeling_ast.data.recipes import RecipeError
from modeling_ast.layouts import strides_in_name
from modeling_ast.loading import is_ast, load_trained
from modeling_ast.modeling_ast import GEOMETRY_KEYS

logger = logging.getLogger(__name__)

_NETWORK_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "initializer_range",  # of the drawn weights that they have
)
_SETTING_KEYS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "patchout_rows",
    "patchout_columns",
    "patchout_patches",
    "drop_path_rate",
    "problem_type",
    "attn_implementation",
)


def check_reporters(names: list[str]) -> None:
    """Let what shall be reported to show that it is installed, before the data is read and the model is made.

    Args:
        names: As `TrainingArguments.report_to` has them.

    Raises:
        RecipeError: Something that Transformers does not report to, or that is not installed.
    """
    for name in names:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (ImportError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"report_to {name} cannot be used: {reason}") from error


def build_model_and_extractor(
    arguments: ModelArguments, label_names: list[str], allow_fresh_head: bool = True
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """Both, as `build_model` and `build_feature_extractor` make them.

    Raises:
        RecipeError: Arguments or weights that cannot be used, in one sentence.
    """
    try:
        model = build_model(arguments, label_names, allow_fresh_head)
        return model, build_feature_extractor(arguments, model.config)
    except (ValueError, OSError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())  # the libraries' messages have several lines
        raise RecipeError(f"{arguments.model_name_or_path} cannot be used: {reason}") from error


def build_model(
    arguments: ModelArguments, label_names: list[str], allow_fresh_head: bool = True
) -> ASTForAudioClassification:
    """The model that `model_name_or_path` names, with one output a label, in the order of the names.

    A checkpoint that has these labels keeps its head, in their order; any other gets a fresh one.

    Args:
        arguments: Of the model.
        label_names: Of the data; of clips without labels none, and any head will do.
        allow_fresh_head: Whether the head may be fresh; not where the model is only evaluated.

    Raises:
        ValueError: Weights that are none of ours, network sizes that the weights do not have, or other labels where
            no fresh head is allowed.
        OSError: No such folder, file or repository.
    """
    name = arguments.model_name_or_path
    id2label, label2id = dict(enumerate(label_names)), {label: index for index, label in enumerate(label_names)}
    network, geometry = arguments.given(_NETWORK_KEYS), arguments.given(GEOMETRY_KEYS)
    settings = arguments.given(_SETTING_KEYS)
    labels = {"id2label": id2label, "label2id": label2id} if label_names else {}
    if not allow_fresh_head and not is_ast(name):
        raise ValueError("expected a trained model, whose labels are known")
    if name in SIZES:
        width = network.get("hidden_size", SIZES[name]["hidden_size"])
        network = {"initializer_range": _initial_deviation(width), **network}
        return ASTForAudioClassification(ASTConfig.from_size(name, **network, **geometry, **settings, **labels))
    if is_ast(name):
        model, missing = load_trained(name, **geometry, **settings)
        if missing := [key for key in missing if not key.startswith("classifier.")]:  # a body without a head will do
            raise ValueError(f"expected trained weights, but some are missing, such as {missing[0]}")
    elif Path(name).is_file() and (layout := checkpoint_layout(name)):
        # Strides of the arguments adapt a checkpoint that says its own; they are those of one that says none.
        says_its_own = layout.has_strides or strides_in_name(name)
        own = {} if says_its_own else arguments.given(("frequency_stride", "time_stride"))
        original = load_original_checkpoint(name, **own)
        model = ASTForAudioClassification(ASTConfig(**{**original.config.to_dict(), **settings}))
        model.base_model.load_state_dict(original.base_model.state_dict())
        if layout.has_head:  # else it stays fresh
            model.classifier.load_state_dict(original.classifier.state_dict())
        model.adapt_geometry(**geometry)
    else:
        # The original's epsilons, which are timm's and PyTorch's.
        eps = {"layer_norm_eps": 1e-6, "head_layer_norm_eps": 1e-5}
        config = ASTConfig(**imagenet_sizes(name), **eps, **geometry, **settings, **labels)
        model = load_imagenet_checkpoint(name, config)
    for key, value in network.items():
        if value != getattr(model.config, key):
            raise ValueError(
                f"Expected {key} {getattr(model.config, key)}, which the weights of {name} have, got {value}."
            )
    trained_names = list(model.config.id2label.values()) if label_names else []
    if trained_names != label_names and sorted(trained_names) == sorted(label_names):
        order = [trained_names.index(label) for label in label_names]
        head = {key: tensor[order] for key, tensor in model.classifier.dense.state_dict().items()}
        model.classifier.dense.load_state_dict(head)
        model.config.id2label, model.config.label2id = id2label, label2id
    elif trained_names != label_names:
        if not allow_fresh_head:
            raise ValueError(f"expected the labels of the model ({', '.join(trained_names[:5])}, ...) in the data")
        model.reset_classifier(id2label)
    if allow_fresh_head:  # training moves the scores that they were fitted to
        model.drop_thresholds()
    return model


def _initial_deviation(width: int) -> float:
    """Of random weights: what a layer makes of normed tokens is as large as they are.

    The original's 0.02 is from networks 768 wide. In smaller ones their layers would add next to nothing to the tokens
    at first, and what a linear model finds in them is less: see tests/campaigns/README.md, "From random weights".

    Source: LeCun, Bottou, Orr, Müller, "Efficient BackProp", 1998.
    """
    return width**-0.5


def recipe_sampling_rate(arguments: ModelArguments) -> int:
    """In Hz, of the waveforms that a recipe's model takes.

    Raises:
        RecipeError: The recipe does not say it, and nor does what it starts from.
    """
    try:
        return arguments.sampling_rate or build_feature_extractor(arguments, ASTConfig()).sampling_rate
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"sampling_rate is needed, since {arguments.model_name_or_path} does not tell its own: "
            f"{' '.join(str(error).split())}"
        ) from error


def build_feature_extractor(arguments: ModelArguments, config: ASTConfig) -> ASTFeatureExtractor:
    """The feature extractor that belongs to the model: its length and mel bins, the arguments' statistics and padding.

    What the arguments leave open comes from the checkpoint where it brings a feature extractor, or from what is
    published with it, else from AudioSet.
    """
    name, given = arguments.model_name_or_path, ASTFeatureExtractor.options_for(config) | arguments.given(FEATURE_KEYS)
    if is_ast(name):
        try:
            return ASTFeatureExtractor.from_pretrained(name, **given)
        except OSError:
            logger.warning(f"{name} brings no feature extractor.")
    layout = checkpoint_layout(name) if Path(name).is_file() else None
    return (layout.extractor_class if layout else ASTFeatureExtractor)(**given)
