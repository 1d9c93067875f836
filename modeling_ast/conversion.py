"""Foreign weights to ours: published checkpoints, and ImageNet weights of distilled DeiT in three layouts."""

import argparse
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from .configuration_ast import ASTConfig
from .layouts import (
    KERNEL,
    SSAST_SIZES,
    TABLE,
    Layout,
    find_layout,
    from_timm,
    from_transformers_deit,
    network_sizes,
    read_checkpoint,
)
from .modeling_ast import ASTForAudioClassification, ASTModel, adapt_position_embeddings

# Public repositories of the DeiT weights that the four sizes of the original start from.
# Source: the model cards of these repositories.
IMAGENET_REPOSITORIES = {
    "tiny224": "facebook/deit-tiny-distilled-patch16-224",
    "small224": "facebook/deit-small-distilled-patch16-224",
    "base224": "facebook/deit-base-distilled-patch16-224",
    "base384": "facebook/deit-base-distilled-patch16-384",
}
# What does not fit, in one message.
MAX_PROBLEMS = 20
_NUMBERS = tuple(SSAST_SIZES)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def load_original_checkpoint(
    path: str | os.PathLike[str],
    *,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    num_mel_bins: int | None = None,
    max_length: int | None = None,
    id2label: dict[int, str] | None = None,
) -> ASTForAudioClassification | ASTModel:
    """A model from a checkpoint of the training code that published it.

    Depth and width are read from the weights. Known are

    - AST, such as `audioset_10_10_0.4593.pth`. Its strides are in the file name (`..._<frequency>_<time>_...`), or
      have to be said. A fine-tuned SSAST is the same; its head, unless its task was `ft_cls`, reads the mean of the
      patches instead of the special tokens, and is of no use here.
    - SSAST's patch models, such as `SSAST-Tiny-Patch-400.pth`: they learnt without labels and have no head.
    - PaSST, such as `passt-s-f128-p16-s10-ap.476-swa.pt`, on the features of `PaSSTFeatureExtractor`. With a shorter
      `max_length` it keeps the first of its positions along time, as it does itself with shorter clips.
    - AudioMAE, pre-trained: its encoder, as a start. Its one special token becomes both of ours; it has no head.

    Args:
        path: The `.pth` file: a bare state dict, with or without the prefix `module.`.
        frequency_stride: In mel bins; `None` takes what the weights or the file name say.
        time_stride: In frames; `None` takes what the weights or the file name say.
        num_mel_bins: Mel bins that the model was trained with; `None` takes what the weights say, or 128.
        max_length: Frames that the model was trained with. `None` takes what the weights say, or, among the lengths
            that give the patches in the file, the original's (1024, 512, 128 or 100) or else the shortest.
        id2label: Label names by index; `None` keeps `LABEL_0` and so on.

    Returns:
        The model in evaluation mode, with the original's epsilons; an `ASTModel` where the weights have no head.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another layout, keys missing or unexplained, strides unknown, patches that are no squares, or
            sizes that do not fit the weights; label names for weights without a head; numbers that are not finite, or
            no floating-point numbers.
        huggingface_hub.errors.StrictDataclassError: Weights of a network that cannot work, or that no machine would
            hold.
    """
    given = {
        "frequency_stride": frequency_stride,
        "time_stride": time_stride,
        "num_mel_bins": num_mel_bins,
        "max_length": max_length,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if wrong := [f"{key} {value}" for key, value in given.items() if value < 1]:
        raise ValueError(f"Expected strides, mel bins and frames of at least 1, got {', '.join(wrong)}.")
    checkpoint = read_checkpoint(_load_tensors(Path(path)), path, given)
    body, head, geometry = checkpoint.body, checkpoint.head, checkpoint.geometry
    options = {} if head is None else _head_options(head, id2label)
    if head is None and id2label is not None:
        raise ValueError("Expected no label names: these weights have no head. Training a classifier gives them one.")
    config = ASTConfig(
        **network_sizes(body, path), **geometry, layer_norm_eps=1e-6, head_layer_norm_eps=1e-5, **options
    )
    if config.num_patches != (num_patches := body[TABLE].shape[1] - 2):
        raise ValueError(
            f"Expected {num_patches} patches, the size of the position table in {path}, but {config.max_length} "
            f"frames of {config.num_mel_bins} mel bins with strides {config.frequency_stride} and "
            f"{config.time_stride} give {config.num_patches}."
        )
    if head is None:
        return _fill(ASTModel(config), body, {}, checkpoint.unused, path)
    config.label2id = {label: index for index, label in config.id2label.items()}
    return _fill(ASTForAudioClassification(config), body, head, checkpoint.unused, path)


def _head_options(head: dict[str, torch.Tensor], id2label: dict[int, str] | None) -> dict[str, Any]:
    """Options of the configuration that belong to a head."""
    num_labels = len(head["classifier.dense.weight"]) if "classifier.dense.weight" in head else 1
    if id2label is not None and len(id2label) != num_labels:
        raise ValueError(f"Expected {num_labels} label names, as many as the head has outputs, got {len(id2label)}.")
    labels = {"num_labels": num_labels} if id2label is None else {"id2label": id2label}
    # The original trains all its released models with binary cross entropy, Speech Commands too.
    return {**labels, "problem_type": "multi_label_classification"}


def load_imagenet_checkpoint(path_or_repo: str | os.PathLike[str], config: ASTConfig) -> ASTForAudioClassification:
    """A model that starts from the ImageNet weights of a distilled DeiT, as the original does.

    The three colour channels of the patch kernels are summed, the position table is adapted from the grid of the
    images, the head is fresh.

    Args:
        path_or_repo: A weight file or a folder with one, in DeiT's release layout (`{"model": ...}`), in timm's or in
            Transformers'; a Hub repository of timm or Transformers; or a size ("tiny224" ... "base384"), which stands
            for its public repository.
        config: Of the model to build; its width, depth and patch size must be those of the weights.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: Not weights of a distilled DeiT, keys missing or unexplained, or sizes that do not fit the config.
        OSError: The repository or its weight file cannot be had.
    """
    ours, unused = _load_deit(path_or_repo)
    network_sizes(ours, path_or_repo)
    ours[KERNEL] = ours[KERNEL].sum(dim=1, keepdim=True)
    side = round(max(0, ours[TABLE].shape[1] - 2) ** 0.5)
    grid = (config.num_frequency_patches, config.num_time_patches)
    ours[TABLE] = adapt_position_embeddings(ours[TABLE], (side, side), grid)
    model = ASTForAudioClassification(config)
    head = {f"classifier.{key}": tensor for key, tensor in model.classifier.state_dict().items()}
    return _fill(model, ours, head, unused, path_or_repo)


def checkpoint_layout(path: str | os.PathLike) -> Layout | None:
    """The layout of a weight file that `load_original_checkpoint` reads; `None` of any other, such as a DeiT's.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a weight file, or one that cannot be read safely.
    """
    return find_layout(_load_tensors(Path(path)))


def imagenet_sizes(path_or_repo: str | os.PathLike) -> dict[str, int]:
    """Sizes of the network that DeiT weights belong to, as keyword arguments of `ASTConfig`.

    Args:
        path_or_repo: As for `load_imagenet_checkpoint`.

    Raises:
        ValueError: Not weights of a distilled DeiT.
        OSError: The repository or its weight file cannot be had.
    """
    return network_sizes(_load_deit(path_or_repo)[0], path_or_repo)


def _load_deit(path_or_repo: str | os.PathLike) -> tuple[dict[str, torch.Tensor], set[str]]:
    state_dict = _load_tensors(_find_weights(path_or_repo))
    if any(key.startswith("deit.") for key in state_dict):
        return from_transformers_deit(state_dict)
    return from_timm(state_dict)


def why_unreadable(error: Exception) -> str:
    """What is wrong with a file of weights, from the error that reading it raised.

    PyTorch's own words take many lines, and advise to read the file in the way that runs what is in it.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "not a pickle of tensors alone, or a broken one; nothing in it was run"
    if "ignore_mismatched_sizes" in str(error):  # Transformers' words, which point to a report that it has printed
        return "the weights have other shapes than their configuration says; which, is reported above"
    return " ".join(str(error).split()) or type(error).__name__


def refuse_not_finite(tensors: Mapping[str, torch.Tensor], source: str | os.PathLike) -> None:
    """Check weights: one NaN among them can make every prediction NaN.

    Raises:
        ValueError: NaN or infinite numbers in the weights.
    """
    if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"Expected finite numbers in the weights of {source}, got NaN or infinite ones in {len(bad)} of "
            f"{len(tensors)} tensors, such as {bad[0]}. Did the training diverge?"
        )


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file; a pickle that would run code is refused."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = _load_pickle(path)
        if numbers := [key for key, tensor in tensors.items() if not tensor.ndim and not key.endswith(_NUMBERS)]:
            raise ValueError(f"expected tensors with axes, got the single number {numbers[0]}")
        return tensors
    except Exception as error:  # safetensors, pickle, zip and torch each raise their own; nothing was executed
        raise ValueError(f"{path}: not a weight file that can be read safely ({why_unreadable(error)}).") from error


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    if zipfile.is_zipfile(path):  # as PyTorch writes it, and never compresses
        with zipfile.ZipFile(path) as archive:
            _refuse_bomb(sum(member.file_size for member in archive.infolist()), path)
    # AudioMAE keeps the arguments of its run beside the weights; a namespace only holds what it is given.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):  # DeiT's release layout, and AudioMAE's
        content = content["model"]
    if not isinstance(content, dict) or not all(_is_named_tensor(*item) for item in content.items()):
        raise ValueError(f"expected a dictionary of tensors, got {type(content).__name__}")
    _refuse_bomb(sum(tensor.nbytes for tensor in content.values()), path)
    return content


def _is_named_tensor(name: Any, value: Any) -> bool:
    is_tensor = isinstance(name, str) and isinstance(value, torch.Tensor)
    return is_tensor and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def _refuse_bomb(claimed: int, path: Path) -> None:
    """A view of one number may have the shape of billions, and zeros shrink to nothing where they are packed."""
    if claimed > (size := path.stat().st_size):
        raise ValueError(f"its tensors claim {claimed:,} bytes, the file has {size:,}")


def _find_weights(path_or_repo: str | os.PathLike) -> Path:
    path = Path(path_or_repo)
    if path.is_file():
        return path
    if path.is_dir():
        for name in _WEIGHT_FILES:
            if (path / name).is_file():
                return path / name
        raise ValueError(f"Expected {' or '.join(_WEIGHT_FILES)} in {path}.")

    repository = IMAGENET_REPOSITORIES.get(str(path_or_repo), str(path_or_repo))
    for name in _WEIGHT_FILES:
        found = cached_file(repository, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found)
    raise OSError(
        f"{path_or_repo}: no such file or folder, and no {' or '.join(_WEIGHT_FILES)} to be had from the Hub "
        f"repository {repository}. Is the network there?"
    )


def _fill(
    model: ASTForAudioClassification | ASTModel,
    body: dict[str, torch.Tensor],
    head: dict[str, torch.Tensor],
    unused: set[str],
    source: str | os.PathLike,
) -> ASTForAudioClassification | ASTModel:
    """Put every tensor in its place; anything missing, left over, of another size or no finite number is an error."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    tensors = {**{f"{prefix}{key}": tensor for key, tensor in body.items()}, **head}
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    problems = [f"not found: {key}" for key in sorted(expected.keys() - found.keys())]
    problems += [f"not used: {key}" for key in sorted(unused | (found.keys() - expected.keys()))]
    problems += [
        f"{key}: expected shape {expected[key]}, got {found[key]}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key] != found[key]
    ]
    problems += [
        f"{key}: expected floating-point numbers, got {tensor.dtype}"
        for key, tensor in sorted(tensors.items())
        if not tensor.is_floating_point()
    ]
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        lines = "\n  ".join([*problems[:MAX_PROBLEMS], *more])
        raise ValueError(f"The weights of {source} do not fit the model:\n  {lines}")
    refuse_not_finite(tensors, source)
    model.load_state_dict(tensors)
    return model.eval()


__all__ = ["load_imagenet_checkpoint", "load_original_checkpoint"]
