"""Configuration of the Audio Spectrogram Transformer."""

import math
import re
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

# Width and heads of the four networks of the original. The other numbers are the same in all of them: 12 layers, an
# MLP four times as wide as the network, heads of 64 channels. base224 and base384 differ in the ImageNet weights that
# they start from (position grids of 14 x 14 and of 24 x 24 patches), not in the network.
# Source: Gong et al., "AST: Audio Spectrogram Transformer", Interspeech 2021; Touvron et al., DeiT, ICML 2021.
SIZES = {
    "tiny224": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "small224": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base224": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "base384": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
# A configuration comes from strangers, and a number in it costs them nothing. More than this, far beyond any AST, is
# refused before time or memory is spent on it: layers and label names are objects, and parameters that the weights
# lack are made (in float32, 8 GB of them).
MAX_LAYERS, MAX_LABELS, MAX_PARAMETERS = 1_000, 1_000_000, 2_000_000_000
_HALF_CHARACTER = re.compile("[\\ud800-\\udfff]")


@strict
class ASTConfig(PreTrainedConfig):
    r"""Sizes of an AST. Every key of Transformers' own `ASTConfig`, with the same meaning, and seven more.

    The defaults are those of the checkpoint
    [MIT/ast-finetuned-audioset-10-10-0.4593](https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593).

    Args:
        hidden_size: Width of the network.
        num_hidden_layers: Number of Transformer layers.
        num_attention_heads: Attention heads; must divide `hidden_size`.
        intermediate_size: Width of the MLP's hidden layer.
        hidden_act: Activation of the MLP, a name that Transformers knows.
        hidden_dropout_prob: Dropout after the embeddings, the attention and the MLP, in [0, 1). The original has none.
        attention_probs_dropout_prob: Dropout on the attention weights, in [0, 1). The original has none.
        initializer_range: Standard deviation of the truncated normal that fresh weights are drawn from. The default is
            the original's, for 768 wide; a recipe draws from 1 / sqrt(hidden_size) where it names none.
        layer_norm_eps: Epsilon of the layer norms in the body. 1e-6 in the original, 1e-12 in the files of the Hub.
        head_layer_norm_eps: Epsilon of the layer norm in the classification head; `None` means `layer_norm_eps`. 1e-5
            in the original. Transformers' own AST has no such key: it ignores this one and uses `layer_norm_eps`,
            which moves the logits by less than 1e-4.
        patch_size: Side of the square patches, in mel bins and in frames.
        qkv_bias: Whether query, key and value have biases.
        frequency_stride: Step between patches along frequency, in mel bins.
        time_stride: Step between patches along time, in frames.
        max_length: Number of frames (10 ms apart) of the spectrograms that the model takes.
        num_mel_bins: Number of mel bins of the spectrograms that the model takes.
        thresholds: Label to the score, a probability in [0, 1], from which on the label counts as present; see
            `modeling_ast.inference.calibration`. Labels that are not in it have none, and `None` means that no label
            has one. They belong to the head that they were fitted with: a fresh head drops them. Transformers' own
            AST has no such key: it keeps the thresholds in the file, and does not use them. As it also keeps those
            of a head that it replaces, names that are no label of the model are no error, and say nothing.
        unknown_threshold: Of a model with one label a clip, the distance above which a clip is of none of them, as
            `ASTMLPHead.measure_distance` gives it, from the sounds that it was fitted on; `None`: there is no such
            distance. What it is measured by lies with the weights of the head. Transformers' own AST has neither,
            and keeps this key, which says nothing without those.
        patchout_rows: Rows of the patch grid (of frequency) that each training batch leaves out, at random; see
            `modeling_ast.modeling_ast.ASTEmbeddings.draw_patches`. In training mode alone, and 0 for all three means
            not at all; Transformers' own AST has no such keys, and leaves nothing out.
        patchout_columns: Columns of the patch grid (of time) that it leaves out, at `max_length` frames; of shorter or
            longer clips the same share.
        patchout_patches: Single patches that it leaves out of the rest, at `max_length` frames; of shorter or longer
            clips the same share.
        drop_path_rate: Share of the clips of a training batch that skip the attention, and of those that skip the MLP,
            of the last layer, in [0, 1); from the first layer, which none skips, it rises linearly (stochastic depth).
            In training mode alone; Transformers' own AST has no such key, and skips nothing.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A value has the wrong type or cannot work, or a network that no
            machine would hold; the message says which value, what was expected and what came. Checked when the
            configuration is made and again when a model is built from it.
        ValueError: Label names that cannot be numbered, or too many of them.
    """

    model_type = "audio-spectrogram-transformer"
    # How Transformers shards the base model over processes; the base class has the names of a language model.
    base_model_fsdp_plan = {
        "embeddings": "free_full_weight",
        "encoder.layer.*": "free_full_weight",
        "layernorm": "keep_full_weight",
    }
    base_model_tp_plan = {
        "encoder.layer.*.attention.attention.query": "colwise",
        "encoder.layer.*.attention.attention.key": "colwise",
        "encoder.layer.*.attention.attention.value": "colwise",
        "encoder.layer.*.attention.output.dense": "rowwise",
        "encoder.layer.*.intermediate.dense": "colwise",
        "encoder.layer.*.output.dense": "rowwise",
    }

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    head_layer_norm_eps: float | None = None
    patch_size: int = 16
    qkv_bias: bool = True
    frequency_stride: int = 10
    time_stride: int = 10
    max_length: int = 1024
    num_mel_bins: int = 128
    thresholds: dict[str, float | int] | None = None
    unknown_threshold: float | int | None = None
    patchout_rows: int = 0
    patchout_columns: int = 0
    patchout_patches: int = 0
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs: Any):
        # Before the base class makes a name for each label and a number of each key.
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and not (type(num_labels) is int and 1 <= num_labels <= MAX_LABELS):
            raise ValueError(f"Expected num_labels of 1 to {MAX_LABELS:,}, got {num_labels!r}.")
        if self.id2label is not None:
            _check_label_names(self.id2label)
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "ASTConfig":
        """Configuration of one of the original's networks, with the original's epsilons (1e-6 body, 1e-5 head).

        Args:
            size: "tiny224", "small224", "base224" or "base384" (5.7, 22.1, 86.6 and 86.6 million parameters).
            **overrides: Any key of the configuration.

        Raises:
            ValueError: The size is not one of the four.
        """
        if size not in SIZES:
            raise ValueError(f"Expected a size out of {', '.join(SIZES)}, got {size!r}.")
        return cls(**{"layer_norm_eps": 1e-6, "head_layer_norm_eps": 1e-5, **SIZES[size], **overrides})

    @property
    def num_frequency_patches(self) -> int:
        """Rows of the patch grid."""
        return (self.num_mel_bins - self.patch_size) // self.frequency_stride + 1

    @property
    def num_time_patches(self) -> int:
        """Columns of the patch grid."""
        return (self.max_length - self.patch_size) // self.time_stride + 1

    @property
    def num_patches(self) -> int:
        """Cells of the patch grid."""
        return self.num_frequency_patches * self.num_time_patches

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: the patches, the CLS token and the distillation token."""
        return self.num_patches + 2

    @property
    def readout_layers(self) -> tuple[int, int]:
        """Of whose output frozen features are taken where nothing else is said: the middle layer and the last."""
        return self.num_hidden_layers // 2, self.num_hidden_layers

    def _count_parameters(self) -> int:
        """Those of the matrices, the position table and the patch kernels; norms and biases are few."""
        width = self.hidden_size
        layer = 4 * width**2 + 2 * width * self.intermediate_size
        return self.num_hidden_layers * layer + width * (self.num_tokens + self.patch_size**2 + self.num_labels)

    def validate_sizes(self):
        """Part of the validation of a strict dataclass: values that could not work are refused."""
        positive = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
        for name in (*positive, "frequency_stride", "time_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"Expected num_attention_heads to divide hidden_size, got {self.num_attention_heads} heads for a "
                f"width of {self.hidden_size}."
            )
        for name, axis in (("max_length", "frames"), ("num_mel_bins", "mel bins")):
            if getattr(self, name) < self.patch_size:
                raise ValueError(
                    f"Expected {name} of at least one patch ({self.patch_size} {axis}), got {getattr(self, name)}."
                )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Expected {name} in [0, 1), got {getattr(self, name)}.")
        if self.drop_path_rate and self.num_hidden_layers == 1:
            raise ValueError("Expected drop_path_rate 0 with one layer: it has no effect on the first one.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"Expected hidden_act out of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}.")
        problem_types = (None, "single_label_classification", "multi_label_classification", "regression")
        if self.problem_type not in problem_types:
            raise ValueError(f"Expected problem_type out of {problem_types}, got {self.problem_type!r}.")
        if self.num_labels < 1:
            raise ValueError(f"Expected num_labels of at least 1, got {self.num_labels}.")
        for name in ("layer_norm_eps", "head_layer_norm_eps", "initializer_range"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"Expected {name} above 0, got {getattr(self, name)}.")
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"Expected num_hidden_layers of at most {MAX_LAYERS:,}, got {self.num_hidden_layers}.")
        if self._count_parameters() > MAX_PARAMETERS:
            sizes = ("hidden_size", "intermediate_size", "patch_size", "max_length", "num_mel_bins", "num_labels")
            raise ValueError(
                f"Expected a network of at most {MAX_PARAMETERS:,} parameters, got {self._count_parameters():,}: "
                f"{', '.join(f'{name} {getattr(self, name)}' for name in sizes)}."
            )
        rows, columns = self.num_frequency_patches - self.patchout_rows, self.num_time_patches - self.patchout_columns
        for name, most in (
            ("patchout_rows", self.num_frequency_patches - 1),
            ("patchout_columns", self.num_time_patches - 1),
            ("patchout_patches", rows * columns - 1),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"Expected {name} of 0 to {most}, which leaves a patch, got {getattr(self, name)}.")
        for label, threshold in (self.thresholds or {}).items():
            if not 0 <= threshold <= 1:
                raise ValueError(f"Expected thresholds in [0, 1], got {threshold} for {label}.")
        if self.unknown_threshold is not None and not 0 < self.unknown_threshold < math.inf:
            raise ValueError(f"Expected unknown_threshold above 0, got {self.unknown_threshold}.")


def _check_label_names(id2label: Any) -> None:
    """The keys of a file are text, and must be the outputs' numbers: another name would never be reached."""
    if not isinstance(id2label, dict):
        raise ValueError(f"Expected id2label to be label names by index, got {type(id2label).__name__}.")
    if not 1 <= len(id2label) <= MAX_LABELS:
        raise ValueError(f"Expected id2label with 1 to {MAX_LABELS:,} labels, got {len(id2label):,}.")
    numbers = {str(number) for number in range(len(id2label))}
    if wrong := [key for key in id2label if str(key) not in numbers]:
        raise ValueError(f"Expected the keys of id2label to be 0 to {len(id2label) - 1}, got {wrong[0]!r:.40}.")
    # JSON can spell half a character, \ud800, that no file of results can hold.
    if wrong := [name for name in id2label.values() if not isinstance(name, str) or _HALF_CHARACTER.search(name)]:
        raise ValueError(f"Expected the names in id2label to be text, got {wrong[0]!r:.40}.")


__all__ = ["ASTConfig"]
