"""The masked autoencoder: an AST sees a part of the patches of each clip, and a light decoder predicts the others."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput

from modeling_ast import ASTConfig, ASTModel
from modeling_ast.modeling_ast import ASTEncoder, ASTPreTrainedModel

HEAD_CHANNELS = 32  # of the decoder, as in MAE's


@dataclass
class MaskedOutput(ModelOutput):
    """Scalars of a batch: the losses, and how much their ingredients differ.

    Attributes:
        loss: Of the patches, and of the whole clips by its weight.
        patch_loss: Mean over the clips of the squared error of a value of a masked patch.
        utterance_loss: Mean squared error of a bin's mean and deviation; `None` where they are not predicted.
        target_deviation: Standard deviation of the values of masked patches. Its square is what the best constant
            would leave for `patch_loss`.
        pooled_deviation: Standard deviation of a channel of the pooled outputs over the clips, the mean of all
            channels; 0 where every clip gives the same (collapse).
    """

    loss: torch.Tensor | None = None
    patch_loss: torch.Tensor | None = None
    utterance_loss: torch.Tensor | None = None
    target_deviation: torch.Tensor | None = None
    pooled_deviation: torch.Tensor | None = None


class ASTForMaskedPretraining(ASTPreTrainedModel):
    """An AST that learns without labels, from masked patches and from each bin's mean and deviation over the clip.

    The encoder computes the kept patches and the two special tokens alone. Of it the special tokens' mean is what a
    classifier's head reads later, and what the second prediction trains.

    Args:
        config: Of the encoder. Its patches must not overlap.
        decoder_layers: Of the decoder.
        decoder_width: Of the decoder, a multiple of 32; `None` takes half of the encoder's.
        normalize_targets: Whether each patch is predicted less its own mean, in its own deviations.
        utterance_weight: Of the second prediction's loss; 0 leaves it out.

    Raises:
        ValueError: Overlapping patches, a grid of one patch, or a width that is no multiple of 32.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners" (2022), and Huang et al., "Masked
        Autoencoders that Listen" (2022), for the patches.
    """

    def __init__(
        self,
        config: ASTConfig,
        decoder_layers: int = 2,
        decoder_width: int | None = None,
        normalize_targets: bool = False,
        utterance_weight: float = 1.0,
    ):
        super().__init__(config)
        strides = (config.frequency_stride, config.time_stride)
        if min(strides) < config.patch_size:
            raise ValueError(
                f"Expected strides of at least patch_size, {config.patch_size}, got {strides[0]} and {strides[1]}: of "
                "overlapping patches the masked ones could be read off their neighbours. The trained model can have "
                "smaller strides afterwards, to which its positions adapt."
            )
        if config.num_patches < 2:
            raise ValueError("Expected spectrograms of two patches at least, of which one is masked, got one.")
        self.normalize_targets, self.utterance_weight = normalize_targets, utterance_weight
        self.audio_spectrogram_transformer = ASTModel(config)
        width = config.hidden_size // 2 if decoder_width is None else decoder_width
        self.decoder = PatchDecoder(config, decoder_layers, width)
        self.utterance_head = nn.Linear(config.hidden_size, 2 * config.num_mel_bins) if utterance_weight else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchDecoder):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)

    @property
    def part_names(self) -> list[str]:
        """What `forward` tells beside the loss."""
        names = [each.name for each in fields(MaskedOutput) if each.name != "loss"]
        return [name for name in names if name != "utterance_loss" or self.utterance_head is not None]

    def forward(
        self, input_values: torch.Tensor, kept: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> MaskedOutput:
        """
        Args:
            input_values: As for `ASTModel`.
            kept: Indices of the patches that the encoder sees, as from `draw_kept`: int64 of shape (batch, clones,
                kept patches). Each clone of a clip counts like a clip.
            attention_mask: Which frames are a clip's, as for `ASTModel`. Patches of padding are not predicted.

        Returns:
            The losses.
        """
        clones = kept.shape[1]
        input_values, kept = input_values.repeat_interleave(clones, dim=0), kept.flatten(0, 1)
        if attention_mask is not None:
            attention_mask = attention_mask.repeat_interleave(clones, dim=0)
        encoded = self.audio_spectrogram_transformer(input_values, attention_mask, kept=kept, return_dict=True)
        own = self._own_patches(input_values, attention_mask)
        columns = self.base_model.embeddings.count_columns(input_values.shape[1])
        predicted = self.decoder(encoded.last_hidden_state, kept, columns, None if attention_mask is None else own)
        masked = own.scatter(1, kept, False)
        targets = self._patch_targets(input_values)
        errors = (predicted.float() - targets).square().mean(dim=2)
        patch_loss = _mean_of(errors, masked).mean()
        # By products: to pick the masked ones would let a GPU wait for every batch.
        mean = _mean_of(targets.mean(dim=2).flatten(), masked.flatten())
        squares = (targets - mean).square().mean(dim=2)
        output = MaskedOutput(
            loss=patch_loss,
            patch_loss=patch_loss.detach(),
            target_deviation=_mean_of(squares.flatten(), masked.flatten()).sqrt(),
            pooled_deviation=encoded.pooler_output.detach().float().std(dim=0, correction=0).mean(),
        )
        if self.utterance_head is not None:
            predicted = self.utterance_head(encoded.pooler_output).float()
            utterance_loss = (predicted - utterance_targets(input_values, attention_mask)).square().mean()
            output.loss = patch_loss + self.utterance_weight * utterance_loss
            output.utterance_loss = utterance_loss.detach()
        return output

    def _own_patches(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Which patches are a clip's and no padding: booleans (batch, patches)."""
        embeddings = self.base_model.embeddings
        columns = embeddings.count_columns(input_values.shape[1])
        if attention_mask is None:
            attention_mask = torch.ones(input_values.shape[:2], dtype=torch.long, device=input_values.device)
        own_columns = embeddings.count_own_columns(attention_mask).unsqueeze(1)
        own = torch.arange(columns, device=own_columns.device) < own_columns  # (batch, columns)
        return own.repeat(1, self.config.num_frequency_patches)

    def _patch_targets(self, input_values: torch.Tensor) -> torch.Tensor:
        """The values of each patch, in the order of the patches: float32 (batch, patches, patch_size ** 2)."""
        config = self.config
        image = input_values.float().transpose(1, 2).unsqueeze(1)  # (batch, 1, mel bins, frames)
        strides = (config.frequency_stride, config.time_stride)
        patches = F.unfold(image, config.patch_size, stride=strides).transpose(1, 2)
        if not self.normalize_targets:
            return patches
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()


class PatchDecoder(nn.Module):
    """Encoded tokens of the kept patches to the values of all patches, by layers as the encoder's."""

    def __init__(self, config: ASTConfig, num_layers: int, width: int):
        super().__init__()
        if width % HEAD_CHANNELS or width < 1:
            raise ValueError(
                f"Expected decoder_width (half of hidden_size if unset) to be a multiple of {HEAD_CHANNELS}, got "
                f"{width}."
            )
        self.config = copy.deepcopy(config)
        self.config.hidden_size, self.config.intermediate_size = width, 4 * width
        self.config.num_hidden_layers, self.config.num_attention_heads = num_layers, width // HEAD_CHANNELS
        self.config.drop_path_rate = 0.0
        self.embedding = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.encoder = ASTEncoder(self.config)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.prediction = nn.Linear(width, config.patch_size**2)

    def forward(
        self, hidden_states: torch.Tensor, kept: torch.Tensor, columns: int, own: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: Of the two special tokens and the kept patches, (batch, 2 + kept patches, hidden_size).
            kept: Their indices, (batch, kept patches).
            columns: Of the grid.
            own: Which patches are a clip's, as booleans (batch, patches); `None` means all.

        Returns:
            Tensor of shape (batch, patches, patch_size ** 2).
        """
        embedded = self.embedding(hidden_states)
        special, seen = embedded[:, :2], embedded[:, 2:]
        rows, width = self.config.num_frequency_patches, embedded.shape[2]
        patches = self.mask_token.to(seen.dtype).repeat(len(seen), rows * columns, 1)
        patches = patches.scatter(1, kept.unsqueeze(2).expand(-1, -1, width), seen)
        positions = grid_positions(rows, columns, width).to(patches)
        tokens = torch.cat((special, patches + positions), dim=1)
        mask = None
        if own is not None:
            mask = create_bidirectional_mask(self.config, tokens, F.pad(own, (2, 0), value=True))
        decoded = self.encoder(tokens, mask, output_attentions=False, output_hidden_states=False).last_hidden_state
        return self.prediction(self.layernorm(decoded[:, 2:]))


def draw_kept(
    config: ASTConfig,
    frames: Sequence[int],
    batch_frames: int,
    mask_ratio: float,
    clones: int,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Which patches of the clips of a batch are kept: of a clip each is as likely as any other.

    Args:
        config: Of the model.
        frames: Of each clip.
        batch_frames: Of the batch, to which they are padded.
        mask_ratio: Share of a clip's patches that are masked, of which one is masked and one kept in any case.
        clones: Draws for each clip.
        generators: Of each clip.

    Returns:
        int64 tensor of shape (batch, clones, kept patches): indices in the grid of the batch, ascending, and for clips
        that keep fewer than others those of their padding, which nothing attends to.
    """
    all_columns, rows = _count_columns(config, batch_frames), config.num_frequency_patches
    grid, drawn = torch.arange(rows * all_columns).view(rows, all_columns), []
    for own_frames, generator in zip(frames, generators):
        own = grid[:, : _count_columns(config, own_frames)].flatten()
        padding = grid[:, _count_columns(config, own_frames) :].flatten()
        number = max(1, min(len(own) - 1, round((1 - mask_ratio) * len(own))))
        for _ in range(clones):
            drawn.append((own[torch.randperm(len(own), generator=generator)[:number].sort().values], padding))
    most = max(len(kept) for kept, _ in drawn)
    filled = torch.stack([torch.cat((kept, padding[: most - len(kept)])) for kept, padding in drawn])
    return filled.unflatten(0, (-1, clones))


def _count_columns(config: ASTConfig, frames: int) -> int:
    return max(1, (frames - config.patch_size) // config.time_stride + 1)


def grid_positions(rows: int, columns: int, width: int) -> torch.Tensor:
    """Sines and cosines of the places on a grid, a half of the channels for each axis: (rows * columns, width).

    Source: He et al. (2022), after Vaswani et al., "Attention Is All You Need" (2017).
    """
    frequencies = torch.exp(torch.arange(width // 4) * (-4 * math.log(10000.0) / width))
    axes = []
    for size in (rows, columns):
        angles = torch.arange(size).unsqueeze(1) * frequencies
        axes.append(torch.cat((angles.sin(), angles.cos()), dim=1))  # (size, width / 2)
    row, column = axes
    grid = (row.unsqueeze(1).expand(-1, columns, -1), column.unsqueeze(0).expand(rows, -1, -1))
    return torch.cat(grid, dim=2).flatten(0, 1)


def utterance_targets(input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean and standard deviation of each mel bin over the frames of a clip: float32 (batch, 2 * mel bins)."""
    values = input_values.float()
    own = torch.ones_like(values[..., 0]) if attention_mask is None else attention_mask.to(values)
    mean = _mean_of(values.transpose(1, 2), own.unsqueeze(1))  # (batch, mel bins)
    squares = (values - mean.unsqueeze(1)).square()
    return torch.cat((mean, _mean_of(squares.transpose(1, 2), own.unsqueeze(1)).sqrt()), dim=1)


def _mean_of(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean over the last axis of those that are chosen; 0 where none is."""
    chosen = chosen.to(values)
    return (values * chosen).sum(dim=-1) / chosen.sum(dim=-1).clamp(min=1)
