"""Foreign weights to ours: the original's checkpoints, and ImageNet weights of distilled DeiT in three layouts."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import (
    cached_file,
    logging,
)

from .configuration_ast import ASTConfig
from .modeling_ast import ASTForAudioClassification, adapt_position_embeddings

logger = logging.get_logger(__name__)

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
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# The original and DeiT are timm 0.4.5 models; these are timm's names and ours, with N for the number of the layer.
_TIMM_TO_OURS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.N.norm1": "encoder.layer.N.layernorm_before",
    "blocks.N.attn.proj": "encoder.layer.N.attention.output.dense",
    "blocks.N.norm2": "encoder.layer.N.layernorm_after",
    "blocks.N.mlp.fc1": "encoder.layer.N.intermediate.dense",
    "blocks.N.mlp.fc2": "encoder.layer.N.output.dense",
    "norm": "layernorm",
}
_HEAD_TO_OURS = {"mlp_head.0": "classifier.layernorm", "mlp_head.1": "classifier.dense"}
_LAYER_NUMBER = re.compile(r"^encoder\.layer\.(\d{1,4})\.")
# Heads for ImageNet's 1000 classes; the original keeps them in every checkpoint and never uses them.
_DEAD_HEAD = re.compile(r"(head|head_dist|cls_classifier|distillation_classifier)\.(weight|bias)")


def load_original_checkpoint(
    path: str | os.PathLike[str],
    *,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    num_mel_bins: int = 128,
    max_length: int | None = None,
    id2label: dict[int, str] | None = None,
) -> ASTForAudioClassification:
    """A model from a checkpoint of the original's training code, such as the released `audioset_10_10_0.4593.pth`.

    Depth and width are read from the weights, strides from the file name (`..._<frequency>_<time>_...`) where it has
    them.

    Args:
        path: The `.pth` file: a bare state dict, with or without the prefix `module.`.
        frequency_stride: In mel bins; `None` reads it from the file name.
        time_stride: In frames; `None` reads it from the file name.
        num_mel_bins: Mel bins that the model was trained with; not to be found in the file.
        max_length: Frames that the model was trained with. `None` takes, among the lengths that give the patches in
            the file, the original's (1024, 512, 128 or 100) or else the shortest.
        id2label: Label names by index; `None` keeps `LABEL_0` and so on.

    Returns:
        The model in evaluation mode, with the original's epsilons.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a state dict of the original, keys missing or unexplained, strides unknown, or sizes that do
            not fit the weights; numbers that are not finite, or no floating-point numbers.
        huggingface_hub.errors.StrictDataclassError: Weights of a network that cannot work, or that no machine would
            hold.
    """
    body, head, unused = _from_original(_load_tensors(Path(path)), path)
    in_name = strides_in_name(path) or (None, None)
    frequency_stride = in_name[0] if frequency_stride is None else frequency_stride
    time_stride = in_name[1] if time_stride is None else time_stride
    if frequency_stride is None or time_stride is None:
        raise ValueError(
            f"Expected the strides in the file name, as in audioset_10_10_0.4593.pth, or as arguments, got "
            f"{Path(path).name!r}."
        )

    sizes = _sizes(body, path)
    num_patches = body["embeddings.position_embeddings"].shape[1] - 2
    geometry = {"frequency_stride": frequency_stride, "time_stride": time_stride, "num_mel_bins": num_mel_bins}
    if max_length is None:
        max_length = _find_max_length(num_patches, sizes["patch_size"], **geometry)
    num_labels = len(head["classifier.dense.weight"]) if "classifier.dense.weight" in head else 1
    if id2label is not None and len(id2label) != num_labels:
        raise ValueError(f"Expected {num_labels} label names, as many as the head has outputs, got {len(id2label)}.")
    config = ASTConfig(
        **sizes,
        **geometry,
        max_length=max_length,
        layer_norm_eps=1e-6,
        head_layer_norm_eps=1e-5,
        # The original trains all its released models with binary cross entropy, Speech Commands too.
        problem_type="multi_label_classification",
        **({"num_labels": num_labels} if id2label is None else {"id2label": id2label}),
    )
    if config.num_patches != num_patches:
        raise ValueError(
            f"Expected {num_patches} patches, the size of the position table in {path}, but {max_length} frames of "
            f"{num_mel_bins} mel bins with strides {frequency_stride} and {time_stride} give {config.num_patches}."
        )
    config.label2id = {label: index for index, label in config.id2label.items()}
    return _fill(ASTForAudioClassification(config), body, head, unused, path)


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
    _sizes(ours, path_or_repo)
    kernel = "embeddings.patch_embeddings.projection.weight"
    ours[kernel] = ours[kernel].sum(dim=1, keepdim=True)
    table = ours["embeddings.position_embeddings"]
    side = round(max(0, table.shape[1] - 2) ** 0.5)
    ours["embeddings.position_embeddings"] = adapt_position_embeddings(
        table, (side, side), (config.num_frequency_patches, config.num_time_patches)
    )
    model = ASTForAudioClassification(config)
    head = {f"classifier.{key}": tensor for key, tensor in model.classifier.state_dict().items()}
    return _fill(model, ours, head, unused, path_or_repo)


def is_original_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a weight file is a checkpoint of the original AST, and not of a DeiT.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a weight file, or one that cannot be read safely.
    """
    return any(key.removeprefix("module.").startswith("v.") for key in _load_tensors(Path(path)))


def strides_in_name(path: str | os.PathLike) -> tuple[int, int] | None:
    """Frequency and time stride in the name of a checkpoint of the original, where it has them.

    As in audioset_10_10_0.4593.pth or tiny224_f10_t10_1024.pth: the last two neighbouring numbers from 1 to 16.
    """
    pairs = re.findall(r"(?=_f?(\d+)_t?(\d+)_)", Path(path).name)
    pairs = [(int(frequency), int(time)) for frequency, time in pairs]
    pairs = [pair for pair in pairs if all(1 <= stride <= 16 for stride in pair)]
    return pairs[-1] if pairs else None


def imagenet_sizes(path_or_repo: str | os.PathLike) -> dict[str, int]:
    """Sizes of the network that DeiT weights belong to, as keyword arguments of `ASTConfig`.

    Args:
        path_or_repo: As for `load_imagenet_checkpoint`.

    Raises:
        ValueError: Not weights of a distilled DeiT.
        OSError: The repository or its weight file cannot be had.
    """
    return _sizes(_load_deit(path_or_repo)[0], path_or_repo)


def _load_deit(path_or_repo: str | os.PathLike) -> tuple[dict[str, torch.Tensor], set[str]]:
    state_dict = _load_tensors(_find_weights(path_or_repo))
    if any(key.startswith("deit.") for key in state_dict):
        return _from_transformers_deit(state_dict)
    return _from_timm(state_dict)


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
        if numbers := [key for key, tensor in tensors.items() if not tensor.ndim]:
            raise ValueError(f"expected tensors with axes, got the single number {numbers[0]}")
        return tensors
    except Exception as error:  # safetensors, pickle, zip and torch each raise their own; nothing was executed
        raise ValueError(f"{path}: not a weight file that can be read safely ({why_unreadable(error)}).") from error


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    if zipfile.is_zipfile(path):  # as PyTorch writes it, and never compresses
        with zipfile.ZipFile(path) as archive:
            _refuse_bomb(sum(member.file_size for member in archive.infolist()), path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):  # DeiT's release layout
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


def _from_original(
    state_dict: dict[str, torch.Tensor], path: str | os.PathLike
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], set[str]]:
    """Tensors under our names, of the body and of the head, and the names of those that have no place in them."""
    state_dict = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    if not any(key.startswith("v.blocks.") for key in state_dict):
        raise ValueError(
            f"Expected a checkpoint of the original AST (keys v.blocks.*, mlp_head.*), got keys such as "
            f"{sorted(state_dict)[:3]} in {path}."
        )
    body = {key.removeprefix("v."): tensor for key, tensor in state_dict.items() if key.startswith("v.")}
    body, unused = _from_timm(body)
    head = {}
    for key, tensor in state_dict.items():
        stem, _, kind = key.rpartition(".")
        if stem in _HEAD_TO_OURS:
            head[f"{_HEAD_TO_OURS[stem]}.{kind}"] = tensor
        elif not key.startswith("v."):
            unused.add(key)
    return body, head, unused


def _from_timm(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Tensors under our names (of the body), and the names of those that have no place there."""
    ours, unused = {}, set()
    for key, tensor in state_dict.items():
        if _DEAD_HEAD.fullmatch(key):
            continue
        layer = re.match(r"blocks\.(\d{1,4})\.", key)
        generic = re.sub(r"^blocks\.\d{1,4}\.", "blocks.N.", key)
        stem, _, kind = generic.rpartition(".")
        if generic in _TIMM_TO_OURS:
            ours[_TIMM_TO_OURS[generic]] = tensor
        elif stem == "blocks.N.attn.qkv":
            # One product for query, key and value, in this order along the rows.
            for name, part in zip(("query", "key", "value"), tensor.chunk(3, dim=0)):
                ours[f"encoder.layer.{layer[1]}.attention.attention.{name}.{kind}"] = part
        elif stem in _TIMM_TO_OURS:
            target = _TIMM_TO_OURS[stem]
            ours[f"{target.replace('.N.', f'.{layer[1]}.') if layer else target}.{kind}"] = tensor
        else:
            unused.add(key)
    return ours, unused


def _from_transformers_deit(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Transformers' DeiT has our names behind the prefix `deit.`."""
    body = {key.removeprefix("deit."): tensor for key, tensor in state_dict.items() if key.startswith("deit.")}
    unused = {key for key in state_dict if not key.startswith("deit.") and not _DEAD_HEAD.fullmatch(key)}
    return body, unused


def _sizes(body: dict[str, torch.Tensor], source: str | os.PathLike) -> dict[str, int]:
    """Sizes of the network that the body's weights, in our names, belong to."""
    needed = {
        "hidden_size": "embeddings.cls_token",
        "patch_size": "embeddings.patch_embeddings.projection.weight",
        "intermediate_size": "encoder.layer.0.intermediate.dense.weight",
        "positions": "embeddings.position_embeddings",
        "distillation": "embeddings.distillation_token",
    }
    missing = [key for key in needed.values() if key not in body]
    if missing:
        raise ValueError(f"Expected weights of a distilled DeiT or an AST, but {source} lacks {', '.join(missing)}.")
    for size, rank in {"hidden_size": 3, "patch_size": 4, "intermediate_size": 2, "positions": 3}.items():
        shape = tuple(body[needed[size]].shape)
        if len(shape) != rank:
            raise ValueError(f"Expected {needed[size]} with {rank} axes, got shape {shape} in {source}.")
    hidden_size = body[needed["hidden_size"]].shape[-1]
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(number) for key in body for number in _LAYER_NUMBER.findall(key)),
        "num_attention_heads": max(1, hidden_size // 64),  # heads of 64 channels in every size of the original
        "intermediate_size": body[needed["intermediate_size"]].shape[0],
        "patch_size": body[needed["patch_size"]].shape[-1],
    }


def _find_max_length(
    num_patches: int, patch_size: int, frequency_stride: int, time_stride: int, num_mel_bins: int
) -> int:
    rows = (num_mel_bins - patch_size) // frequency_stride + 1
    if rows < 1 or num_patches % rows:
        raise ValueError(
            f"Expected a number of patches that {rows} rows divide ({num_mel_bins} mel bins, stride "
            f"{frequency_stride}), got {num_patches}. Other strides or mel bins?"
        )
    shortest = (num_patches // rows - 1) * time_stride + patch_size
    lengths = range(shortest, shortest + time_stride)
    return next((length for length in (1024, 512, 128, 100) if length in lengths), shortest)


def _fill(
    model: ASTForAudioClassification,
    body: dict[str, torch.Tensor],
    head: dict[str, torch.Tensor],
    unused: set[str],
    source: str | os.PathLike,
) -> ASTForAudioClassification:
    """Put every tensor in its place; anything missing, left over, of another size or no finite number is an error."""
    tensors = {**{f"{model.base_model_prefix}.{key}": tensor for key, tensor in body.items()}, **head}
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
