"""Layouts of published weights: foreign names, orders and shapes of tensors to ours.

What `load_original_checkpoint` reads is one line of `LAYOUTS` and its function. DeiT's layouts, which are of images,
are functions that `load_imagenet_checkpoint` chooses from.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .feature_extraction_ast import ASTFeatureExtractor
from .feature_extraction_passt import PaSSTFeatureExtractor

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
_LAYER_NUMBER = re.compile(r"^encoder\.layer\.(\d{1,4})\.")
# Heads for ImageNet's 1000 classes; the original keeps them in every checkpoint and never uses them.
_DEAD_HEAD = re.compile(r"(head|head_dist|cls_classifier|distillation_classifier)\.(weight|bias)")

# Single numbers among the tensors: mel bins and frames of SSAST's training, by the keys of the configuration.
SSAST_SIZES = {"p_input_fdim": "num_mel_bins", "p_input_tdim": "max_length"}
PASST_TABLES, PASST_PATCH = ("new_pos_embed", "freq_new_pos_embed", "time_new_pos_embed"), 16
# The strides that PaSST is published with, the same along both axes: 12, 10, 9 and 8 rows of patches tell which.
PASST_STRIDES = (10, 12, 14, 16)
# Frames of PaSST's trainings, and of a clip of their 10, 20 and 30 seconds.
PASST_LENGTHS = {998: 1000, 2000: 2000, 3000: 3000}
KERNEL, TABLE = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"


@dataclass
class Checkpoint:
    """Weights under our names, and what is known of the spectrograms and patches that they were trained with."""

    body: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor] | None  # `None`: what the weights learnt needs none
    unused: set[str]  # names of tensors that have no place in either
    geometry: dict[str, int] = field(default_factory=dict)  # the geometry keys of the configuration


@dataclass(frozen=True)
class Layout:
    """How a network is published.

    Args:
        description: Whose, and the keys that tell it, for errors.
        mark: Begins a name that no layout further down has.
        read: From the tensors, their file, and the geometry that the caller says (the keys of the configuration; what
            is not in it is to be found out).
        has_strides: Whether the weights say their strides by themselves.
        has_head: Whether they classify.
        extractor_class: Of the features that they were trained on.
    """

    description: str
    mark: re.Pattern
    read: Callable[[dict[str, torch.Tensor], str | os.PathLike, Mapping[str, int]], Checkpoint]
    has_strides: bool = True
    has_head: bool = True
    extractor_class: type[ASTFeatureExtractor] = ASTFeatureExtractor


def find_layout(names: Iterable[str]) -> Layout | None:
    """The layout of tensors with these names, `None` where it is none that `load_original_checkpoint` reads."""
    names = [name.removeprefix("module.") for name in names]
    return next((layout for layout in LAYOUTS if any(map(layout.mark.match, names))), None)


def read_checkpoint(
    state_dict: dict[str, torch.Tensor], path: str | os.PathLike, geometry: Mapping[str, int]
) -> Checkpoint:
    """Tensors of any layout under our names.

    Args:
        state_dict: Of the file, with or without the prefix `module.`.
        path: Of the file, for the strides in its name and for errors.
        geometry: What the caller says of it, by the keys of the configuration.

    Raises:
        ValueError: A layout that is none of these, or one whose geometry is not to be found.
    """
    layout = find_layout(state_dict)
    if layout is None:
        known = ", or ".join(layout.description for layout in LAYOUTS[::-1])
        raise ValueError(f"Expected a checkpoint of {known}, got keys such as {sorted(state_dict)[:3]} in {path}.")
    return layout.read({key.removeprefix("module."): tensor for key, tensor in state_dict.items()}, path, geometry)


def _read_original(
    state_dict: dict[str, torch.Tensor], path: str | os.PathLike, geometry: Mapping[str, int]
) -> Checkpoint:
    """The original AST: the body behind `v.`, and its head."""
    body, unused = from_timm({key[2:]: tensor for key, tensor in state_dict.items() if key.startswith("v.")})
    outside = {key: tensor for key, tensor in state_dict.items() if not key.startswith("v.")}
    head, others = _rename_head(outside, "mlp_head")
    in_name = strides_in_name(path)
    geometry = {**(dict(zip(("frequency_stride", "time_stride"), in_name)) if in_name else {}), **geometry}
    if not geometry.keys() >= {"frequency_stride", "time_stride"}:
        raise ValueError(
            f"Expected the strides in the file name, as in audioset_10_10_0.4593.pth, or as arguments, got "
            f"{Path(path).name!r}."
        )
    return Checkpoint(body, head, unused | others, _complete(body, path, geometry))


def _read_ssast(
    state_dict: dict[str, torch.Tensor], path: str | os.PathLike, geometry: Mapping[str, int]
) -> Checkpoint:
    """The self-supervised AST: the body behind `v.`, patches that do not overlap, and the spectrogram's size.

    Its predictions of masked patches, and the token that stood for these, have no place in a classifier.
    """
    body, unused = from_timm({key[2:]: tensor for key, tensor in state_dict.items() if key.startswith("v.")})
    unused |= {
        key
        for key in state_dict
        if not key.startswith(("v.", "cpredlayer.", "gpredlayer.")) and key not in ("mask_embed", *SSAST_SIZES)
    }
    stride = network_sizes(body, path)["patch_size"]
    sizes = {}
    for key, name in SSAST_SIZES.items():
        if (size := state_dict.get(key)) is None or size.ndim or size.is_floating_point():
            raise ValueError(f"Expected a whole number {key} beside the weights of an SSAST, got none in {path}.")
        sizes[name] = int(size)
    return Checkpoint(body, None, unused, {"frequency_stride": stride, "time_stride": stride, **sizes, **geometry})


def _read_passt(
    state_dict: dict[str, torch.Tensor], path: str | os.PathLike, geometry: Mapping[str, int]
) -> Checkpoint:
    """PaSST: positions along frequency and along time, which add up, and a head like AST's.

    Of a length that is said the first positions along time are taken, as PaSST itself does with a shorter clip.
    """
    if "stfthop" in Path(path).name:
        raise ValueError(f"Expected a PaSST of 100 frames a second, got {Path(path).name}, which has more.")
    tables = [state_dict.get(name) for name in PASST_TABLES]
    shapes = [() if table is None else tuple(table.shape) for table in tables]
    width, rows, columns = (shape[axis] if len(shape) > axis else 0 for shape, axis in zip(shapes, (2, 2, 3)))
    if shapes != [(1, 2, width), (1, width, rows, 1), (1, width, 1, columns)]:
        raise ValueError(
            f"Expected {', '.join(PASST_TABLES)} of shapes (1, 2, width), (1, width, rows, 1) and (1, width, 1, "
            f"columns) in {path}, got {', '.join(map(str, shapes))}."
        )
    head, names = _rename_head(state_dict, "head")
    body, unused = from_timm({name: state_dict[name] for name in names if name not in PASST_TABLES})

    geometry = {"num_mel_bins": 128, **geometry}
    strides = [stride for stride in PASST_STRIDES if geometry["num_mel_bins"] // stride == rows]
    if not (strides or "frequency_stride" in geometry):
        raise ValueError(f"Expected the strides of {path} as arguments: {rows} rows are no published PaSST's.")
    geometry.setdefault("frequency_stride", *strides[:1])
    stride = geometry.setdefault("time_stride", geometry["frequency_stride"])
    lengths = [length for frames, length in PASST_LENGTHS.items() if frames // stride == columns]
    max_length = geometry.setdefault("max_length", *lengths[:1] or [(columns - 1) * stride + PASST_PATCH])
    grid = tables[1] + tables[2][..., : max(0, max_length - PASST_PATCH) // stride + 1]  # (1, width, rows, columns)
    body[TABLE] = torch.cat((tables[0], grid.flatten(2).transpose(1, 2)), dim=1)
    return Checkpoint(body, head, unused, geometry)


def _read_audio_mae(
    state_dict: dict[str, torch.Tensor], path: str | os.PathLike, geometry: Mapping[str, int]
) -> Checkpoint:
    """A masked autoencoder's encoder: spectrograms and patches with time first, and one special token.

    Both of ours begin as that one, position included; so a clip's output is near the encoder's own, and no more.
    """
    encoder = {
        key: tensor
        for key, tensor in state_dict.items()
        if not key.startswith("decoder_") and key not in ("mask_token", "pos_embed")
    }
    body, unused = from_timm(encoder)
    table = state_dict.get("pos_embed")
    if table is None or table.ndim != 3 or not table.shape[1] or "embeddings.cls_token" not in body:
        raise ValueError(f"Expected cls_token and pos_embed (1, 1 + patches, width) of an AudioMAE in {path}.")
    body["embeddings.distillation_token"] = body["embeddings.cls_token"]
    special, patches = table[:, [0, 0]], table[:, 1:]
    body[TABLE] = torch.cat((special, patches), dim=1)
    stride = network_sizes(body, path)["patch_size"]
    geometry = _complete(body, path, {"frequency_stride": stride, "time_stride": stride, **geometry})
    rows = max(1, geometry["num_mel_bins"] // stride)
    if not patches.shape[1] % rows:  # else the table does not fit, which is said elsewhere
        patches = patches.unflatten(1, (-1, rows)).transpose(1, 2).flatten(1, 2)
    body[TABLE] = torch.cat((special, patches), dim=1)
    body[KERNEL] = body[KERNEL].transpose(2, 3)
    return Checkpoint(body, None, unused, geometry)


def strides_in_name(path: str | os.PathLike) -> tuple[int, int] | None:
    """Frequency and time stride in the name of a checkpoint of the original, where it has them.

    As in audioset_10_10_0.4593.pth or tiny224_f10_t10_1024.pth: the last two neighbouring numbers from 1 to 16.
    """
    pairs = re.findall(r"(?=_f?(\d+)_t?(\d+)_)", Path(path).name)
    pairs = [(int(frequency), int(time)) for frequency, time in pairs]
    pairs = [pair for pair in pairs if all(1 <= stride <= 16 for stride in pair)]
    return pairs[-1] if pairs else None


def _rename_head(tensors: dict[str, torch.Tensor], name: str) -> tuple[dict[str, torch.Tensor], set[str]]:
    """A layer norm and a linear layer under our names, and the names of what else there is."""
    head, others = {}, set()
    for key, tensor in tensors.items():
        stem, _, kind = key.rpartition(".")
        ours = {f"{name}.0": "classifier.layernorm", f"{name}.1": "classifier.dense"}.get(stem)
        if ours is None:
            others.add(key)
        else:
            head[f"{ours}.{kind}"] = tensor
    return head, others


def from_timm(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], set[str]]:
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


def from_transformers_deit(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Transformers' DeiT has our names behind the prefix `deit.`."""
    body = {key.removeprefix("deit."): tensor for key, tensor in state_dict.items() if key.startswith("deit.")}
    unused = {key for key in state_dict if not key.startswith("deit.") and not _DEAD_HEAD.fullmatch(key)}
    return body, unused


def network_sizes(body: dict[str, torch.Tensor], source: str | os.PathLike) -> dict[str, int]:
    """Sizes of the network that the body's weights, in our names, belong to.

    Raises:
        ValueError: Weights that say them are missing or have other axes; patches that are no squares.
    """
    needed = {
        "hidden_size": "embeddings.cls_token",
        "patch_size": KERNEL,
        "intermediate_size": "encoder.layer.0.intermediate.dense.weight",
        "positions": TABLE,
        "distillation": "embeddings.distillation_token",
    }
    missing = [key for key in needed.values() if key not in body]
    if missing:
        raise ValueError(f"Expected weights of a distilled DeiT or an AST, but {source} lacks {', '.join(missing)}.")
    for size, rank in {"hidden_size": 3, "patch_size": 4, "intermediate_size": 2, "positions": 3}.items():
        shape = tuple(body[needed[size]].shape)
        if len(shape) != rank:
            raise ValueError(f"Expected {needed[size]} with {rank} axes, got shape {shape} in {source}.")
    hidden_size, patch = body[needed["hidden_size"]].shape[-1], tuple(body[KERNEL].shape[2:])
    if patch[0] != patch[1] or not patch[0]:
        raise ValueError(
            f"Expected square patches, got {patch[0]} x {patch[1]} in {source}: a frame model of SSAST, whose patches "
            "are all mel bins of two frames, is another network than its patch models."
        )
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(number) for key in body for number in _LAYER_NUMBER.findall(key)),
        "num_attention_heads": max(1, hidden_size // 64),  # heads of 64 channels in every size of the original
        "intermediate_size": body[needed["intermediate_size"]].shape[0],
        "patch_size": patch[0],
    }


def _complete(body: dict[str, torch.Tensor], source: str | os.PathLike, geometry: Mapping[str, int]) -> dict[str, int]:
    """The geometry with 128 mel bins, and with the frames that give as many patches as the table has, where not said.

    Of the lengths that do, it is the original's (1024, 512, 128 or 100) or else the shortest.
    """
    geometry = {"num_mel_bins": 128, **geometry}
    if "max_length" in geometry:
        return geometry
    patch_size, num_patches = network_sizes(body, source)["patch_size"], body[TABLE].shape[1] - 2
    rows = (geometry["num_mel_bins"] - patch_size) // geometry["frequency_stride"] + 1
    if rows < 1 or num_patches % rows:
        raise ValueError(
            f"Expected a number of patches that {rows} rows divide ({geometry['num_mel_bins']} mel bins, stride "
            f"{geometry['frequency_stride']}), got {num_patches}. Other strides or mel bins?"
        )
    shortest = (num_patches // rows - 1) * geometry["time_stride"] + patch_size
    lengths = range(shortest, shortest + geometry["time_stride"])
    max_length = next((length for length in (1024, 512, 128, 100) if length in lengths), shortest)
    return {**geometry, "max_length": max_length}


# The first whose mark is found.
LAYOUTS = (
    Layout(
        "PaSST (blocks.*, time_new_pos_embed)",
        re.compile(r"(freq|time)_new_pos_embed"),
        _read_passt,
        extractor_class=PaSSTFeatureExtractor,
    ),
    Layout("AudioMAE (blocks.*, decoder_pos_embed)", re.compile(r"decoder_"), _read_audio_mae, has_head=False),
    Layout("SSAST (v.blocks.*, p_input_tdim)", re.compile(r"p_input_[ft]dim|mask_embed"), _read_ssast, has_head=False),
    Layout("the original AST (v.blocks.*, mlp_head.*)", re.compile(r"v\."), _read_original, has_strides=False),
)
