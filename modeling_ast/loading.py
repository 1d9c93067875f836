"""A folder or a Hub name to a model and its feature extractor: the one way in which whoever uses a model loads it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from transformers import AutoModel, AutoModelForAudioClassification
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_ast import SIZES, ASTConfig
from .conversion import MAX_PROBLEMS, refuse_not_finite, why_unreadable
from .feature_extraction_ast import ASTFeatureExtractor
from .modeling_ast import HUB_KEYS, ASTForAudioClassification, ASTModel

logger = logging.get_logger(__name__)

# Who runs a repository's own code asks the Auto classes for it, by these.
_AUTO_CLASSES = {ASTForAudioClassification: AutoModelForAudioClassification, ASTModel: AutoModel}


class ModelError(ValueError):
    """A model that cannot be used. The message is one sentence that names it and says why."""


def load_model(
    name: str | os.PathLike[str],
    model_class: type[ASTForAudioClassification] | type[ASTModel] = ASTForAudioClassification,
    trust_remote_code: bool | None = None,
    **options: Any,
) -> tuple[ASTForAudioClassification | ASTModel, ASTFeatureExtractor]:
    """A trained model and its feature extractor.

    Args:
        name: Folder or Hub repository.
        model_class: With a head or without.
        trust_remote_code: Whether code that the folder or repository brings may run in place of this package's. It is
            passed over without `True`, and nobody is asked.
        options: Of `from_pretrained` (`revision`, `dtype`, ...).

    Raises:
        ModelError: No such folder or repository, or no feature extractor in it; files that are broken, or do not fit
            each other; weights that are not finite, or missing: they would be drawn at random.
    """
    if trust_remote_code:
        model_class, options = _AUTO_CLASSES[model_class], {**options, "trust_remote_code": True}
    if not os.path.exists(name) and os.path.isdir(os.path.dirname(name)):  # misspelt, and the Hub is slow to say so
        logger.warning(f"{name}: no such folder here, so that it is looked for on the Hub.")
    with as_model_error(name, on_hub=True):
        model, missing = load_trained(name, model_class, **options)
        if missing:
            raise ModelError(f"expected a trained AST, but weights are missing, such as {missing[0]}.")
        extractor = ASTFeatureExtractor.from_pretrained(name, **_hub_options(options))
        check_mel_bins(model, extractor)
    return model, extractor


@contextmanager
def as_model_error(name: str | os.PathLike, on_hub: bool = False) -> Iterator[None]:
    """Around what reads a model: whatever the libraries make of it is one error that names it.

    Args:
        name: Of the model.
        on_hub: Whether what is no folder is looked for on the Hub.

    Raises:
        ModelError: In place of another error.
    """
    try:
        yield
    except (ValueError, OSError, TypeError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())  # the libraries' messages have several lines
        if on_hub and isinstance(error, OSError) and not os.path.exists(name):
            reason = f"there is no such folder here, and of the Hub: {reason}"
        raise ModelError(f"{name} cannot be used: {reason}") from error


def load_trained(
    name: str | os.PathLike[str], model_class: type = ASTForAudioClassification, **options: Any
) -> tuple[ASTForAudioClassification, list[str]]:
    """An AST in Transformers' layout, from a folder or the Hub.

    Args:
        name: Folder or repository.
        model_class: Whose `from_pretrained` loads it.
        options: Of `from_pretrained`.

    Returns:
        The model, and the names of weights that are missing, which were drawn at random.

    Raises:
        ValueError: Its files are broken, its configuration cannot work, or its weights are not finite, integers or
            complex.
        OSError: No such folder or repository, or no weights in it.
    """
    try:
        model, found = model_class.from_pretrained(name, output_loading_info=True, **options)
        other = _find_other_numbers(name, options)
    except OSError:
        raise
    except Exception as error:  # the libraries raise whatever a broken file makes them stumble over
        raise ValueError(why_unreadable(error)) from error
    if any("lora_" in key for key in found["unexpected_keys"]):
        raise ValueError(
            "expected a whole model, got a checkpoint with adapters (LoRA), from which its own run alone goes on: the "
            "model that they are merged into is in the folder of that run."
        )
    if other:
        raise ValueError(f"Expected floating-point weights in {name}, got {', '.join(other[:MAX_PROBLEMS])}.")
    refuse_not_finite(model.state_dict(), name)
    return model, sorted(found["missing_keys"])


def _find_other_numbers(name: str | os.PathLike, options: Mapping[str, Any]) -> list[str]:
    """Weights of a file that are integers or complex, which Transformers casts without a word."""
    options = _hub_options(options)

    def find(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)

    paths = []
    for file, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if path := find(file):
            paths = [path]
        elif path := find(index):  # weights in several files
            paths, _ = get_checkpoint_shard_files(name, path, **options)
        if paths:
            break
    types = {}
    for path in paths:
        if path.endswith(".safetensors"):
            with safe_open(path, "pt") as file:
                types |= {key: file.get_slice(key).get_dtype() for key in file.keys()}
        else:
            tensors = torch.load(path, map_location="meta", weights_only=True)
            types |= {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items()}
    return [f"{key} of type {kind}" for key, kind in types.items() if not kind.upper().startswith(("F", "BF"))]


def _hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say where files are."""
    return {key: options[key] for key in HUB_KEYS if key in options}


def check_mel_bins(model: ASTForAudioClassification | ASTModel, extractor: ASTFeatureExtractor) -> None:
    """Check that a model takes what a feature extractor gives, before any recording is read.

    Raises:
        ValueError: It expects another number of mel bins.
    """
    if extractor.num_mel_bins != model.config.num_mel_bins:
        raise ValueError(
            f"Expected a feature extractor with the model's {model.config.num_mel_bins} mel bins, got one with "
            f"{extractor.num_mel_bins}. Are config.json and preprocessor_config.json of one model?"
        )


def is_ast(name: str) -> bool:
    """Whether a folder or a Hub repository holds an AST in Transformers' layout.

    Raises:
        FileNotFoundError: By its look a path, of nothing that is there.
    """
    looks_like_a_file = Path(name).suffix in (".pth", ".pt", ".bin", ".safetensors")
    if (looks_like_a_file or name.startswith((".", "/", "~"))) and not Path(name).exists():
        raise FileNotFoundError(f"{name}: no such file or folder")
    if name in SIZES or Path(name).is_file() or (Path(name).is_dir() and not (Path(name) / "config.json").is_file()):
        return False
    return PreTrainedConfig.get_config_dict(name)[0].get("model_type") == ASTConfig.model_type
