"""The Audio Spectrogram Transformer (AST): a distilled ViT over overlapping patches of a log-mel spectrogram.

The names of the parameters in memory are the names in the files of the Hub
(`encoder.layer.N.attention.attention.query`). They are longer than one would choose. In exchange every AST checkpoint
of the Hub loads here and every checkpoint of ours loads in Transformers without this package, with no table of
renamings in between, and a `Trainer` that resumes puts back exactly the tensors that it saved.

Source: Gong, Chung, Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021, https://arxiv.org/abs/2104.01778.
"""

import copy
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import logging

from .configuration_ast import ASTConfig

logger = logging.get_logger(__name__)

# What fixes the patch grid besides the patch size; `adapt_geometry` can change these in a trained model.
GEOMETRY_KEYS = ("max_length", "num_mel_bins", "frequency_stride", "time_stride")
# Tokens that the MLP takes at once, at most, on a CPU without gradients. Its middle is four times as wide as the
# network; pieces of it stay near the cores, in memory that is used again. Chosen at base size, out of 300 to 10000.
MLP_TOKENS = 640
# Arguments of `from_pretrained` that say where and how files are fetched.
HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# Buffers of the head, which are in the files of models that tell unknown sounds alone.
_KNOWN_SOUNDS = ("classifier.known_mean", "classifier.known_factor")
# Transformers from 5.9 on has other names in memory, and writes them where it is asked to
# (`save_original_format=False`).
_STOCK_MEMORY_NAMES = {
    r"layers\.": "encoder.layer.",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}


def source_positions(source: int, target: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the cells of one axis of a patch grid lie on the same axis of another, by the original's rule.

    Where the target is not longer than the source, the centre is cut out; where it is longer, linear interpolation.
    Index arithmetic that holds on both sides, without a branch, so that a traced or exported graph holds there too.

    Args:
        source: Cells of the axis that has position embeddings.
        target: int64 tensor of any shape: cells of the axis that needs some.
        size: How many cells to place; those beyond the target's end are placed somewhere on the source.

    Returns:
        Three tensors of shape (*target.shape, size): the source's cell before each place, the cell behind it, and how
        far (float32, in [0, 1)) the place lies from the former to the latter.

    Source: the original's `ASTModel.__init__`. Its cut starts at source // 2 - target // 2, and its interpolation is
        PyTorch's (`align_corners=False`).
    """
    cell = torch.arange(size, device=target.device)
    target = target.unsqueeze(-1)
    cut = source // 2 - target // 2 + cell
    stretched = (cell + 0.5) * (source / target.float()) - 0.5
    place = torch.where(target <= source, cut.float(), stretched).clamp(0, source - 1)
    lower = place.floor()
    upper = (lower + 1).clamp(max=source - 1)
    return lower.long(), upper.long(), place - lower


def adapt_position_embeddings(
    table: torch.Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int]
) -> torch.Tensor:
    """Fit a table of position embeddings to another patch grid, by the original's rule: time first, then frequency.

    The rows of the two special tokens stay; see `source_positions` for the others.

    Args:
        table: Tensor of shape (1, 2 + frequency * time, hidden_size), patches frequency-major.
        source_grid: (frequency patches, time patches) of the table.
        target_grid: The same of the result.

    Returns:
        Tensor of shape (1, 2 + frequency * time, hidden_size) of the target.

    Raises:
        ValueError: The table does not have the size of the source grid.
    """
    frequency, time = source_grid
    if table.shape[1] != 2 + frequency * time:
        raise ValueError(
            f"Expected {2 + frequency * time} position embeddings for a grid of {frequency} x {time} patches and two "
            f"special tokens, got {table.shape[1]}."
        )
    special, patches = table[:, :2], table[:, 2:]
    grid = patches.float().unflatten(1, source_grid)  # (1, frequency, time, hidden_size); float32 for interpolation
    for dim, source, target in ((2, time, target_grid[1]), (1, frequency, target_grid[0])):
        lower, upper, fraction = source_positions(source, torch.tensor(target, device=table.device), target)
        fraction = fraction.unsqueeze(1) if dim == 2 else fraction[:, None, None]
        grid = torch.lerp(grid.index_select(dim, lower), grid.index_select(dim, upper), fraction)
    return torch.cat((special, grid.flatten(1, 2).to(table.dtype)), dim=1)


class ASTPatchEmbeddings(nn.Module):
    """Spectrogram (batch, frames, mel bins) to patch embeddings (batch, patches, hidden_size), frequency-major."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            1,
            config.hidden_size,
            kernel_size=(config.patch_size, config.patch_size),
            stride=(config.frequency_stride, config.time_stride),
        )

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        image = input_values.transpose(1, 2).unsqueeze(1)  # (batch, 1, mel bins, frames)
        image = image.to(self.projection.weight.dtype)  # a float32 spectrogram for a bf16 model
        rows = self.projection(image).unbind(2)  # each (batch, hidden_size, time patches)
        # Neither by `flatten`, nor transposed as a whole: tracing that over an unknown number of frames leaves guards,
        # on the order of its strides, that torch.export refuses.
        return torch.cat([row.transpose(1, 2) for row in rows], dim=1)


class ASTEmbeddings(nn.Module):
    """Patch embeddings behind the CLS and the distillation token, plus positions: (batch, tokens, hidden_size)."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.num_tokens, config.hidden_size))
        self.patch_embeddings = ASTPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_values: torch.Tensor,
        num_columns: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            input_values: Of shape (batch, frames, mel bins).
            num_columns: Columns of patches that belong to each clip, (batch,); `None` means all.
            kept: Indices of the patches that are kept, (kept patches,), as from `draw_patches`, or each clip's own,
                (batch, kept patches); `None` means all.
        """
        patches = self.patch_embeddings(input_values)
        special = torch.cat((self.cls_token, self.distillation_token), dim=1)
        special = special + self.position_embeddings[:, :2]
        patches = patches + self._patch_positions(self.count_columns(input_values.shape[1]), num_columns)
        if kept is not None:
            patches = _choose(patches, kept)
        return self.dropout(torch.cat((special.expand(patches.shape[0], -1, -1), patches), dim=1))

    def draw_patches(self, frames: int, num_columns: torch.Tensor | None = None) -> torch.Tensor | None:
        """Which patches of a training batch are kept: one draw for all of its clips, whose tokens so stay a batch.

        Whole rows and columns of the grid go first (structured patchout), then single patches (unstructured). One
        column that the shortest clip has is drawn before the others and kept, and one patch of it, so that every clip
        keeps a patch of its own. Where all clips are equally long, every choice is as likely as any other.

        Args:
            frames: Of the batch.
            num_columns: Columns of patches that belong to each clip, (batch,); `None` means all.

        Returns:
            Ascending indices, (kept patches,), or `None` where the configuration drops none.

        Source: Koutini et al., "Efficient Training of Audio Transformers with Patchout", Interspeech 2022.
        """
        config, device = self.config, self.position_embeddings.device
        if not (config.patchout_rows or config.patchout_columns or config.patchout_patches):
            return None
        rows, columns = config.num_frequency_patches, self.count_columns(frames)
        full = config.num_time_patches  # clips of other lengths lose the same share
        shortest = columns if num_columns is None else num_columns.min()
        column = (torch.rand((), device=device) * shortest).long().clamp(max=shortest - 1)
        row = torch.randint(rows, (), device=device)
        kept_rows = _draw(rows, rows - config.patchout_rows, row)
        kept_columns = _draw(columns, columns - columns * config.patchout_columns // full, column)
        patches = (kept_rows.unsqueeze(1) * columns + kept_columns).flatten()
        number = max(1, len(patches) - columns * config.patchout_patches // full)
        own = (patches == row * columns + column).long().argmax()
        return patches[_draw(len(patches), number, own)]

    def count_columns(self, frames: int) -> int:
        """Columns of the patch grid over so many frames."""
        return (frames - self.config.patch_size) // self.config.time_stride + 1

    def count_own_columns(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Columns that each clip has of its own, by a mask over frames (batch, frames): one at least."""
        return self.count_columns(attention_mask.sum(dim=1)).clamp(min=1)

    def _patch_positions(self, columns: int, num_columns: torch.Tensor | None) -> torch.Tensor:
        """What `adapt_position_embeddings` gives for each clip's own columns: (1 or batch, patches, hidden_size)."""
        table, rows, source = self.position_embeddings, self.config.num_frequency_patches, self.config.num_time_patches
        if num_columns is None:
            num_columns = torch.full((1,), columns, dtype=torch.int64, device=table.device)
        lower, upper, fraction = source_positions(source, num_columns, columns)  # (clips, columns)
        grid = table[0, 2:].float().unflatten(0, (rows, source))  # (frequency, time, hidden_size)
        # (frequency, clips, columns, hidden_size)
        positions = torch.lerp(grid[:, lower], grid[:, upper], fraction.unsqueeze(-1))
        return torch.cat(positions.unbind(0), dim=1).to(table.dtype)

    def check_shape(self, input_values: torch.Tensor) -> None:
        config = self.config
        expected = f"(batch, {config.patch_size} or more frames, {config.num_mel_bins} mel bins)"
        if input_values.ndim != 3:
            raise ValueError(f"Expected input_values of shape {expected}, got {tuple(input_values.shape)}.")
        frames, bins = input_values.shape[1:]
        got = f"Expected input_values of shape {expected}, got {tuple(input_values.shape)}"
        if bins != config.num_mel_bins:
            cause = (
                "The last two axes are swapped."
                if frames == config.num_mel_bins and bins >= config.patch_size
                else f"For {bins} mel bins load the model with num_mel_bins={bins}, which adapts it."
            )
            raise ValueError(f"{got}. {cause}")
        if frames < config.patch_size:
            raise ValueError(
                f"{got}: less than one patch of {config.patch_size} frames. The feature extractor pads so far."
            )


def _choose(tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Of (batch, tokens, ...) those with some indices: (kept,) for all clips, or (batch, kept)."""
    if kept.ndim == 1:
        return tokens[:, kept]
    return tokens[torch.arange(len(tokens), device=tokens.device).unsqueeze(1), kept]


def _draw(size: int, number: int, always: torch.Tensor) -> torch.Tensor:
    """`number` different indices below `size`, ascending: `always` (int64, a scalar) and others at random."""
    score = torch.rand(size, device=always.device).index_fill(0, always, 2.0)
    return score.topk(number).indices.sort().values


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, the one form that gives its weights: (batch, heads, tokens, tokens)."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    context = F.dropout(weights, p=dropout, training=module.training) @ value
    return context.transpose(1, 2).contiguous(), weights


class ASTSelfAttention(nn.Module):
    """Scaled dot-product attention over all tokens, by whichever implementation Transformers was asked for."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        self.config = config
        self.is_causal = False  # read by Transformers' attention functions
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any, output_attentions: bool, num_queries: int | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        def split_heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, tokens, head_dim)

        query = split_heads(self.query(hidden_states[:, :num_queries]))
        key, value = split_heads(self.key(hidden_states)), split_heads(self.value(hidden_states))
        # Only the eager form has weights to give, so a call that asks for them runs it.
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
        )
        return context.flatten(2), weights


class ASTAttention(nn.Module):
    def __init__(self, config: ASTConfig):
        super().__init__()
        self.attention = ASTSelfAttention(config)
        self.output = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any, output_attentions: bool, num_queries: int | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context, weights = self.attention(hidden_states, attention_mask, output_attentions, num_queries)
        return self.output["dense"](context), weights


class ASTPlainLayer(nn.Module):
    """Pre-norm Transformer layer: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        config: Sizes.
        drop_path_rate: Share of the clips that skip either of the two in training, in [0, 1).
    """

    def __init__(self, config: ASTConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ASTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.ModuleDict({"dense": nn.Linear(config.intermediate_size, config.hidden_size)})
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        output_attentions: bool = False,
        num_queries: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The new hidden states of the first `num_queries` tokens (`None`: of all), which attend to all tokens."""
        normed = self.layernorm_before(hidden_states)
        attended, weights = self.attention(normed, attention_mask, output_attentions, num_queries)
        hidden_states = hidden_states[:, :num_queries] + self.drop_path(self.dropout(attended))
        branch = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(branch), weights

    def drop_path(self, branch: torch.Tensor) -> torch.Tensor:
        """What is added to the hidden states: in training nothing to those of some clips, and more to the others'.

        Source: Huang et al., "Deep Networks with Stochastic Depth" (2016); scaled in training, as in timm.
        """
        if not self.drop_path_rate or not self.training:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path_rate
        return branch * kept / (1 - self.drop_path_rate)

    def mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) to the same; in pieces where a CPU computes no gradients."""
        widen, narrow = self.intermediate["dense"], self.output["dense"]
        in_a_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled() or in_a_graph:
            return narrow(self.activation(widen(hidden_states)))
        tokens = hidden_states.flatten(0, 1)
        pieces = tokens.chunk(math.ceil(len(tokens) / MLP_TOKENS))
        return torch.cat([narrow(self.activation(widen(piece))) for piece in pieces]).view_as(hidden_states)


@functools.cache
def _layer_class() -> type[ASTPlainLayer]:
    """`ASTLayer`: the layer as one that can be checkpointed, made with the first model.

    Transformers finds such layers by their base class, whose module loads soundfile and torchaudio; importing this
    package must need neither, and beside a torchaudio that cannot be loaded a model works without checkpointing.
    """
    try:
        from transformers.modeling_layers import GradientCheckpointingLayer as Checkpointing
    except (ImportError, OSError, RuntimeError):
        Checkpointing = nn.Module
    return type("ASTLayer", (ASTPlainLayer, Checkpointing), {"__module__": __name__, "__doc__": ASTPlainLayer.__doc__})


def __getattr__(name: str) -> type[ASTPlainLayer]:  # of this module: whoever unpickles a model asks for it by name
    if name == "ASTLayer":
        return _layer_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ASTEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ASTConfig):
        super().__init__()
        # From 0 in the first layer to the configuration's in the last one, as timm's.
        steps = max(1, config.num_hidden_layers - 1)
        rates = [config.drop_path_rate * index / steps for index in range(config.num_hidden_layers)]
        self.layer = nn.ModuleList([_layer_class()(config, rate) for rate in rates])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any,
        output_attentions: bool,
        output_hidden_states: bool,
        num_outputs: int | None = None,
    ) -> BaseModelOutput:
        """The last layer computes the first `num_outputs` tokens alone, or all of them."""
        all_hidden_states, all_attentions = [hidden_states], []
        for index, layer in enumerate(self.layer):
            arguments = (hidden_states, attention_mask, output_attentions)
            if index == len(self.layer) - 1 and num_outputs is not None:
                mask = _first_queries(attention_mask, num_outputs)
                arguments = (hidden_states, mask, output_attentions, num_outputs)
            hidden_states, weights = layer(*arguments)
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            if output_attentions:
                all_attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )


def _first_queries(attention_mask: torch.Tensor | None, number: int) -> torch.Tensor | None:
    """A mask (batch, 1, queries, tokens) for the first queries alone; one that holds for all queries has one row."""
    return None if attention_mask is None else attention_mask[:, :, :number]


class ASTMLPHead(nn.Module):
    """Layer norm and linear layer: pooled output (batch, hidden_size) to logits (batch, num_labels).

    Where `unknown_threshold` is set, two buffers hold what known sounds look like behind the layer norm: `known_mean`
    (hidden_size,), and `known_factor` (hidden_size, hidden_size), which makes their spread 1 in every direction.
    """

    def __init__(self, config: ASTConfig):
        super().__init__()
        eps = config.layer_norm_eps if config.head_layer_norm_eps is None else config.head_layer_norm_eps
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=eps)
        self.dense = nn.Linear(config.hidden_size, config.num_labels)
        width = None if config.unknown_threshold is None else config.hidden_size
        self.register_buffer("known_mean", None if width is None else torch.zeros(width))
        self.register_buffer("known_factor", None if width is None else torch.zeros(width, width))

    def forward(self, pooled_output: torch.Tensor) -> torch.Tensor:
        return self.dense(self.layernorm(pooled_output))

    def measure_distance(self, pooled_output: torch.Tensor) -> torch.Tensor:
        """How far clips are from known sounds, (batch,) in float32: Mahalanobis distance, by the root of the width.

        Source: Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
            Adversarial Attacks", NeurIPS 2018, of all classes together, as in Kamoi and Kobayashi, "Why is the
            Mahalanobis Distance Effective for Anomaly Detection?", 2020, https://arxiv.org/abs/2003.00402.
        """
        centred = (self.layernorm(pooled_output) - self.known_mean).float()
        return (centred @ self.known_factor.float().T).square().mean(dim=1).sqrt()


class ASTPreTrainedModel(PreTrainedModel):
    """Loading, saving, adapting and initialising; what both models share."""

    config_class = ASTConfig
    base_model_prefix = "audio_spectrogram_transformer"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    # The loss is a mean over the batch whatever `Trainer` accumulates or distributes. Without this `Trainer` would
    # expect a sum divided by the number of items and scale loss and gradient by processes x accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = ["ASTEmbeddings", "ASTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: ASTConfig, *inputs, **kwargs):
        config.validate()  # overrides given to `from_pretrained` were set after the configuration's own validation
        super().__init__(config, *inputs, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights as the original draws them (truncated normal; patches and head by PyTorch's defaults).

        Through Transformers' functions, which leave tensors alone that come from a checkpoint.
        """
        std = self.config.initializer_range
        if isinstance(module, ASTEmbeddings):
            for parameter in (module.cls_token, module.distillation_token, module.position_embeddings):
                init.trunc_normal_(parameter, std=std)
        elif isinstance(module, nn.Conv2d) or module is getattr(getattr(self, "classifier", None), "dense", None):
            _init_like_pytorch(module)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As in Transformers, and adapts to another geometry instead of failing or zeroing the positions.

        `max_length`, `num_mel_bins`, `frequency_stride` and `time_stride`, as keyword arguments or in `config`, may
        differ from the checkpoint's: the weights are loaded as they are and then adapted (`adapt_geometry`). Another
        number of labels needs `ignore_mismatched_sizes=True`, as always in Transformers, and gives a fresh head, which
        has no thresholds.

        Raises:
            ValueError: The patch size differs from the checkpoint's.
            huggingface_hub.errors.StrictDataclassError: A value that cannot work.
        """
        if isinstance(config, (str, os.PathLike)):
            config = cls.config_class.from_pretrained(config)
        elif isinstance(config, PreTrainedConfig) and not hasattr(type(config), "num_tokens"):  # Transformers' own
            config = cls.config_class.from_dict(config.to_dict())
        has_config = isinstance(config, PreTrainedConfig)
        if pretrained_model_name_or_path is not None and (has_config or "patch_size" in kwargs):
            hub_kwargs = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
            source = cls.config_class.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
            patch_size = config.patch_size if has_config else kwargs["patch_size"]
            if patch_size != source.patch_size:
                raise ValueError(
                    f"Expected patch_size {source.patch_size}, the checkpoint's, got {patch_size}: patch kernels "
                    "cannot be adapted."
                )
        else:
            source = config
        if has_config:
            config.validate()
            wanted = {key: getattr(config, key) for key in GEOMETRY_KEYS}
            config = copy.deepcopy(config)  # which is loaded with as the checkpoint is
            for key in GEOMETRY_KEYS:
                setattr(config, key, getattr(source, key))
        else:
            wanted = {key: kwargs.pop(key) for key in GEOMETRY_KEYS if key in kwargs}

        return_loading_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", _STOCK_MEMORY_NAMES)
        model, loading_info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
        )
        model._weight_conversions = None  # or saving would undo the renaming, and write names that are not ours
        mismatched = {key for key, *_ in loading_info["mismatched_keys"]}
        if "classifier.dense.weight" in mismatched:
            logger.warning(f"Fresh classification head: {model.config.num_labels} labels, unlike the checkpoint.")
        missing = set(loading_info["missing_keys"])
        if "classifier.dense.weight" in mismatched | set(missing):
            model.drop_thresholds()  # those of another head
        elif not missing.isdisjoint(_KNOWN_SOUNDS):  # saved by Transformers' own class, which does not keep them
            model.learn_known_sounds(None, None, None)
        loading_info["missing_keys"] = missing.difference(_KNOWN_SOUNDS)
        model.adapt_geometry(**wanted)
        return (model, loading_info) if return_loading_info else model

    @torch.no_grad()
    def adapt_geometry(
        self,
        *,
        max_length: int | None = None,
        num_mel_bins: int | None = None,
        frequency_stride: int | None = None,
        time_stride: int | None = None,
    ) -> None:
        """Fit a trained model, in place, to spectrograms of another size or to other strides; `None` keeps a value.

        The position table follows by `adapt_position_embeddings`, the convolution gets the new strides, everything
        else stays.

        Raises:
            huggingface_hub.errors.StrictDataclassError: A value that cannot work; the model is then unchanged.
        """
        target = copy.deepcopy(self.config)
        for key, value in zip(GEOMETRY_KEYS, (max_length, num_mel_bins, frequency_stride, time_stride)):
            if value is not None:
                setattr(target, key, value)
        target.validate()
        source_grid = (self.config.num_frequency_patches, self.config.num_time_patches)
        target_grid = (target.num_frequency_patches, target.num_time_patches)
        self._replace_config(target)
        embeddings = self.base_model.embeddings
        embeddings.patch_embeddings.projection.stride = (target.frequency_stride, target.time_stride)
        if source_grid != target_grid:
            table = embeddings.position_embeddings
            adapted = adapt_position_embeddings(table, source_grid, target_grid)
            embeddings.position_embeddings = nn.Parameter(adapted, requires_grad=table.requires_grad)
            logger.warning(
                f"Adapted the position embeddings from {source_grid[0]} x {source_grid[1]} to {target_grid[0]} x "
                f"{target_grid[1]} (frequency x time) patches: {target.max_length} frames of {target.num_mel_bins} "
                f"mel bins, strides {target.frequency_stride} and {target.time_stride}."
            )

    def _replace_config(self, config: ASTConfig) -> None:
        """Give all parts of this model another configuration; the old one may be shared with another model."""
        old = self.config
        for module in self.modules():
            if getattr(module, "config", None) is old:
                module.config = config

    def fold_patches(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Patch tokens back on their grid, without the two special tokens.

        Args:
            hidden_states: Tensor of shape (batch, tokens, dim), such as `last_hidden_state`, of clips of any length.

        Returns:
            Tensor of shape (batch, frequency patches, time patches, dim); row 0 holds the lowest frequencies.

        Raises:
            ValueError: The number of tokens is not that of a grid with the model's number of rows.
        """
        rows = self.config.num_frequency_patches
        if hidden_states.ndim != 3 or hidden_states.shape[1] < 2 + rows or (hidden_states.shape[1] - 2) % rows:
            raise ValueError(
                f"Expected hidden states of shape (batch, 2 + {rows} x time patches tokens, dim), got "
                f"{tuple(hidden_states.shape)}."
            )
        return hidden_states[:, 2:].unflatten(1, (rows, -1))

    def summarize_rows(
        self, hidden_states: Sequence[torch.Tensor], attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean and standard deviation over time of each row of patches, in some layers.

        Args:
            hidden_states: Of each layer a tensor of shape (batch, tokens, dim), such as `last_hidden_state`.
            attention_mask: Over frames, as for `ASTModel.forward`: the columns of padding do not count.

        Returns:
            float32 tensor of shape (batch, layers * frequency patches * 2 * dim): by layer, by row (the lowest
            frequencies first), mean and deviation.

        Raises:
            ValueError: As from `fold_patches`.
        """
        rows = []
        for layer in hidden_states:
            grid = self.fold_patches(layer).float()  # (batch, frequency, time, dim)
            own = torch.ones_like(grid[:, 0, :, 0])  # (batch, time)
            if attention_mask is not None:
                columns = self.base_model.embeddings.count_own_columns(attention_mask)
                own = (torch.arange(own.shape[1], device=own.device) < columns.unsqueeze(1)).to(own)
            share = (own / own.sum(dim=1, keepdim=True))[:, None, :, None]
            mean = (share * grid).sum(dim=2)  # (batch, frequency, dim)
            deviation = (share * (grid - mean.unsqueeze(2)).square()).sum(dim=2).sqrt()
            rows.append(torch.cat((mean, deviation), dim=2).flatten(1))
        return torch.cat(rows, dim=1)


def _init_like_pytorch(module: nn.Linear | nn.Conv2d) -> None:
    """The defaults of nn.Linear and nn.Conv2d: uniform with bound 1 / sqrt(inputs), for weights and biases."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        bound = 1 / math.sqrt(module.weight[0].numel())
        init.uniform_(module.bias, -bound, bound)


class ASTModel(ASTPreTrainedModel):
    """AST without a head: spectrograms to hidden states and one pooled vector a clip."""

    # Heads are left out on purpose: a classifier's, and what a pre-training learns by.
    _keys_to_ignore_on_load_unexpected = [r"^(classifier|decoder|utterance_head)\."]

    def __init__(self, config: ASTConfig):
        super().__init__(config)
        self.embeddings = ASTEmbeddings(config)
        self.encoder = ASTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> ASTPatchEmbeddings:
        return self.embeddings.patch_embeddings

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        only_pooled: bool = False,
        kept: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """
        Args:
            input_values: Log-mel spectrograms of shape (batch, frames, num_mel_bins), normalised; any floating type,
                cast to the model's. Any number of frames from one patch up: the positions are those that the model
                would have if it were loaded with `max_length=frames`.
            attention_mask: Which frames are the clip's (1) and which padding at its end (0), of shape (batch, frames).
                Each clip then gets the positions of its own length and attends to its own patches alone (those without
                a padded frame), so that its outputs do not depend on what it is batched or padded with. A clip
                keeps at least one column of patches. `None` takes every frame for the clip's, as the original does.
                A mask over tokens (batch, tokens), which Transformers' own AST takes, is told apart by its length, and
                only says which tokens are attended to, anywhere; one that fits both is over frames.
            output_attentions: Whether to return attention weights; that call then runs eager attention.
            output_hidden_states: Whether to return the hidden states before the first and after each layer.
            return_dict: `False` for a tuple. `None` means the configuration's value, for all three.
            only_pooled: Whether `pooler_output` is all that is wanted. `last_hidden_state` then may hold the first two
                tokens alone, and the last layer computes no more.
            kept: Indices of the patches that each clip keeps, int64 of shape (batch, kept patches), frequency-major:
                nothing sees the others, and `last_hidden_state` has these in their order. Those of padding are not
                attended to. `None` keeps all, in training mode what `ASTEmbeddings.draw_patches` keeps in this batch.

        Returns:
            `last_hidden_state` (batch, tokens, hidden_size) after the final norm: CLS, distillation, then the patches
            frequency-major (those of padding mean nothing); `pooler_output` (batch, hidden_size): the mean of the
            first two; `hidden_states`: layers + 1 tensors like the first, before the final norm; `attentions`: a
            tensor (batch, heads, tokens, tokens) a layer.

        Raises:
            ValueError: Other mel bins than the configuration's, less than one patch of frames, or a mask of another
                shape or with padding before the clip.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        self.embeddings.check_shape(input_values)
        columns = self.embeddings.count_columns(input_values.shape[1])
        num_columns = own_tokens = None
        if attention_mask is not None and self._covers_tokens(attention_mask, input_values, columns):
            own_tokens = attention_mask.to(input_values.device).bool()
        elif attention_mask is not None:
            is_own = self._check_mask(attention_mask, input_values, columns)
            num_columns = self.embeddings.count_own_columns(is_own)
            own_tokens = self._own_tokens(columns, num_columns)
            # Blank, not only masked: even an attention weight of 0 would bring NaN or infinity out of the padding.
            input_values = input_values.masked_fill(~is_own.unsqueeze(-1), 0)
        if kept is None and self.training:
            kept = self.embeddings.draw_patches(input_values.shape[1], num_columns)
        embedded = self.embeddings(input_values, num_columns, kept)
        if own_tokens is not None and kept is not None:
            own_tokens = torch.cat((own_tokens[:, :2], _choose(own_tokens[:, 2:], kept)), dim=1)
        token_mask = self._mask_tokens(embedded, own_tokens, eager=bool(output_attentions))
        # Masks of other forms than (batch, 1, queries, tokens) belong to implementations that want all queries.
        can_leave_out = token_mask is None or isinstance(token_mask, torch.Tensor) and token_mask.ndim == 4
        only_special = only_pooled and can_leave_out and not (output_attentions or output_hidden_states)
        encoded = self.encoder(
            embedded, token_mask, bool(output_attentions), bool(output_hidden_states), 2 if only_special else None
        )
        last_hidden_state = self.layernorm(encoded.last_hidden_state)
        output = BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=(last_hidden_state[:, 0] + last_hidden_state[:, 1]) / 2,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _covers_tokens(self, attention_mask: torch.Tensor, input_values: torch.Tensor, columns: int) -> bool:
        """Whether a mask is over tokens, not over frames."""
        tokens = 2 + self.config.num_frequency_patches * columns
        return attention_mask.shape != input_values.shape[:2] and attention_mask.shape == (len(input_values), tokens)

    def _check_mask(self, attention_mask: torch.Tensor, input_values: torch.Tensor, columns: int) -> torch.Tensor:
        """Which frames are the clip's, as booleans on the device of the input: (batch, frames)."""
        if attention_mask.shape != input_values.shape[:2]:
            tokens = 2 + self.config.num_frequency_patches * columns
            raise ValueError(
                f"Expected attention_mask of shape (batch, frames), here {tuple(input_values.shape[:2])}, or (batch, "
                f"tokens), here {(len(input_values), tokens)}, got {tuple(attention_mask.shape)}."
            )
        is_own = attention_mask.to(input_values.device).bool()
        # Not in a graph, which could not look at values.
        if not torch.compiler.is_compiling() and (is_own[:, 1:] & ~is_own[:, :-1]).any():
            raise ValueError("Expected attention_mask to be 1 from the start of each clip to its end and 0 behind it.")
        return is_own

    def _own_tokens(self, columns: int, num_columns: torch.Tensor) -> torch.Tensor:
        """Which tokens are a clip's, by the columns of patches that it has: booleans (batch, tokens)."""
        is_own = torch.arange(columns, device=num_columns.device) < num_columns.unsqueeze(1)  # (batch, columns)
        is_own = is_own.repeat(1, self.config.num_frequency_patches)  # (batch, patches)
        return F.pad(is_own, (2, 0), value=True)

    def _mask_tokens(self, embedded: torch.Tensor, own_tokens: torch.Tensor | None, eager: bool) -> Any:
        """Which tokens can be attended to, in the form that the attention implementation takes."""
        if own_tokens is None:
            return None
        if eager:
            bias = torch.zeros_like(own_tokens, dtype=embedded.dtype)
            return bias.masked_fill(~own_tokens, torch.finfo(embedded.dtype).min)[:, None, None]
        return create_bidirectional_mask(self.config, embedded, own_tokens)


class ASTForAudioClassification(ASTPreTrainedModel):
    """AST with a classification head: spectrograms to logits, and to a loss where labels are given."""

    def __init__(self, config: ASTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.audio_spectrogram_transformer = ASTModel(config)
        self.classifier = ASTMLPHead(config)
        self.post_init()

    def learn_known_sounds(
        self, mean: torch.Tensor | None, factor: torch.Tensor | None, threshold: float | None
    ) -> None:
        """Tell clips of none of the labels from now on, in place, or with `None` no longer.

        Args:
            mean: Tensor of shape (hidden_size,), as `ASTMLPHead` holds it.
            factor: Tensor of shape (hidden_size, hidden_size), likewise.
            threshold: Of `ASTMLPHead.measure_distance`.
        """
        self.config.unknown_threshold = threshold
        dense = self.classifier.dense.weight
        self.classifier.known_mean = None if mean is None else mean.to(dense)
        self.classifier.known_factor = None if factor is None else factor.to(dense)

    def drop_thresholds(self) -> None:
        """Forget all that was fitted to a head, in place, as it is to be another one."""
        self.config.thresholds = None
        self.learn_known_sounds(None, None, None)

    @torch.no_grad()
    def reset_classifier(self, id2label: dict[int, str]) -> None:
        """Replace the head, in place, by a fresh one for other labels, which has no thresholds.

        Args:
            id2label: Names of the labels by index.

        Raises:
            ValueError: The indices are not 0, 1, 2, ..., or two labels have the same name.
        """
        if not id2label or list(id2label) != list(range(len(id2label))):
            raise ValueError(f"Expected labels with the indices 0, 1, 2, ..., got {list(id2label)}.")
        if len(set(id2label.values())) < len(id2label):
            raise ValueError("Expected labels with different names, got one twice.")
        logger.warning(f"Fresh classification head for {len(id2label)} labels, instead of {self.config.num_labels}.")
        config = copy.deepcopy(self.config)
        config.id2label = dict(id2label)
        config.label2id = {label: index for index, label in id2label.items()}
        config.thresholds = config.unknown_threshold = None  # those of the old head
        self._replace_config(config)
        self.num_labels = len(id2label)
        old = self.classifier.dense.weight
        self.classifier = ASTMLPHead(self.config).to(old.device, old.dtype)
        self._init_weights(self.classifier.dense)

    def forward(
        self,
        input_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """
        Args:
            input_values: Log-mel spectrograms of shape (batch, frames, num_mel_bins), normalised, of any length.
            labels: See `classification_loss`; `None` for logits alone.
            attention_mask: See `ASTModel.forward`.
            output_attentions: See `ASTModel.forward`.
            output_hidden_states: See `ASTModel.forward`.
            return_dict: See `ASTModel.forward`.

        Returns:
            `logits` (batch, num_labels), before softmax or sigmoid; `loss`, a scalar, where labels are given;
            `hidden_states` and `attentions` as from `ASTModel`.

        Raises:
            ValueError: As from `ASTModel`, or labels of a wrong shape.
        """
        encoded = self.audio_spectrogram_transformer(
            input_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            only_pooled=True,
        )
        logits = self.classifier(encoded.pooler_output)
        output = SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, self.config.problem_type),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None = None) -> torch.Tensor:
    """Mean loss over the batch, computed in float32.

    Args:
        logits: Tensor of shape (batch, num_labels).
        labels: What `problem_type` asks for:
            "single_label_classification": class indices (batch,), or soft labels (batch, num_labels) that sum to 1, as
            mixup makes them. Cross entropy.
            "multi_label_classification": (batch, num_labels) in [0, 1], integers or floats. Binary cross entropy, mean
            over clips and labels.
            "regression": (batch,) or (batch, 1) for one output, else (batch, num_labels). Squared error.
        problem_type: `None` chooses as Transformers does: regression for one output, single-label for class indices,
            multi-label for anything with a column a label.

    Raises:
        ValueError: The labels have another shape or type, or the problem type is unknown.
    """
    labels, logits = labels.to(logits.device), logits.float()
    is_class_index = labels.ndim == 1 and not labels.is_floating_point()
    if problem_type is None:
        if logits.shape[1] == 1:
            problem_type = "regression"
        else:
            problem_type = "single_label_classification" if is_class_index else "multi_label_classification"
    if problem_type == "single_label_classification" and is_class_index and len(labels) == len(logits):
        return F.cross_entropy(logits, labels.long())
    if problem_type == "regression" and labels.numel() == logits.numel() and len(labels) == len(logits):
        return F.mse_loss(logits, labels.float().view_as(logits))
    if problem_type in ("single_label_classification", "multi_label_classification") and labels.shape == logits.shape:
        loss = F.cross_entropy if problem_type == "single_label_classification" else F.binary_cross_entropy_with_logits
        return loss(logits, labels.float())
    shape = tuple(logits.shape)
    expected = {
        "single_label_classification": f"class indices of shape ({shape[0]},) or soft labels of shape {shape}",
        "multi_label_classification": f"labels in [0, 1] of shape {shape}",
        "regression": f"values of shape {shape}",
    }
    if problem_type not in expected:
        raise ValueError(f"Expected a problem_type out of {', '.join(expected)}, got {problem_type!r}.")
    raise ValueError(
        f"Expected {expected[problem_type]} for {problem_type}, got {labels.dtype} of shape {tuple(labels.shape)}."
    )


__all__ = ["ASTForAudioClassification", "ASTModel", "ASTPreTrainedModel"]
