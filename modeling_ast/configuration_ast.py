"""Configuration of the Audio Spectrogram Transformer."""

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


@strict
class ASTConfig(PreTrainedConfig):
    r"""Sizes of an AST. Every key of Transformers' own `ASTConfig`, with the same meaning, and five more.

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
        initializer_range: Standard deviation of the truncated normal that fresh weights are drawn from.
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
        patchout_rows: Rows of the patch grid (of frequency) that each training batch leaves out, at random; see
            `modeling_ast.modeling_ast.ASTEmbeddings.draw_patches`. In training mode alone, and 0 for all three means
            not at all; Transformers' own AST has no such keys, and leaves nothing out.
        patchout_columns: Columns of the patch grid (of time) that it leaves out, at `max_length` frames; of shorter or
            longer clips the same share.
        patchout_patches: Single patches that it leaves out of the rest, at `max_length` frames; of shorter or longer
            clips the same share.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A value has the wrong type or cannot work; the message says which
            value, what was expected and what came. Checked when the configuration is made and again when a model is
            built from it.
    """

    model_type = "audio-spectrogram-transformer"

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
    patchout_rows: int = 0
    patchout_columns: int = 0
    patchout_patches: int = 0

    @classmethod
    def from_size(cls, size: str, **overrides) -> "ASTConfig":
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
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Expected {name} in [0, 1), got {getattr(self, name)}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"Expected hidden_act out of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}.")
        problem_types = (None, "single_label_classification", "multi_label_classification", "regression")
        if self.problem_type not in problem_types:
            raise ValueError(f"Expected problem_type out of {problem_types}, got {self.problem_type!r}.")
        if self.num_labels < 1:
            raise ValueError(f"Expected num_labels of at least 1, got {self.num_labels}.")
        for name in ("layer_norm_eps", "head_layer_norm_eps", "initializer_range"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"Expected {name} above 0, got {getattr(self, name)}.")
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


__all__ = ["ASTConfig"]
