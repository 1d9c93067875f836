"""Keys that say what a model and its feature extractor are, and the check of the numbers of any block of keys."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


def check_numbers(block: Any, intervals: Mapping[str, str]) -> None:
    """Refuse numbers of a block of arguments that are none, infinite, or outside of their interval.

    Args:
        block: A dataclass.
        intervals: What numbers can be, by the name of their field: `"[0, 1)"`. A round bracket excludes its end.

    Raises:
        ValueError: Such a number.
    """
    for each in dataclasses.fields(block):
        value = getattr(block, each.name, None)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise ValueError(f"Expected {each.name} to be a finite number, got {value}.")
        interval = intervals.get(each.name, "(-inf, inf)")
        low, high = map(float, interval[1:-1].split(","))
        is_inside = (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
        if not (low < value < high or is_inside):
            raise ValueError(f"Expected {each.name} in {interval}, got {value}.")


# What a recipe says of the features; the rest of their options follows from the model.
FEATURE_KEYS = ("sampling_rate", "mean", "std", "padding")


@dataclass
class ModelArguments:
    """What the model and its feature extractor are. `None` keeps what the checkpoint or the size says."""

    model_name_or_path: str = field(
        default="base384",
        metadata={
            "help": "Folder or Hub repository of an AST or of a distilled DeiT, published weight file (.pth) or "
            "of DeiT, or a size alone (tiny224, small224, base224, base384) for random weights."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Frames (10 ms apart) of the spectrograms; longer clips are cut."}
    )
    padding: Literal["max_length", "longest"] | None = field(
        default=None,
        metadata={
            "help": "max_length pads every clip to max_length (so it is with random weights). longest leaves clips as "
            "long as they are: batches are of similar lengths, padded to their longest clip and masked; a stream, "
            "which tells no lengths in advance, is padded and masked alone."
        },
    )
    num_mel_bins: int | None = field(default=None, metadata={"help": "Mel bins of the spectrograms."})
    frequency_stride: int | None = field(default=None, metadata={"help": "Mel bins between patches."})
    time_stride: int | None = field(default=None, metadata={"help": "Frames between patches."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width; for random weights only."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Layers; for random weights only."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Heads; for random weights only."})
    intermediate_size: int | None = field(default=None, metadata={"help": "MLP width; for random weights only."})
    initializer_range: float | None = field(
        default=None,
        metadata={
            "help": "Standard deviation of random weights; 1 / sqrt(hidden_size) if unset. 0.02 draws them as the "
            "original does."
        },
    )
    hidden_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout, in [0, 1)."})
    attention_probs_dropout_prob: float | None = field(
        default=None, metadata={"help": "Dropout on attention weights, in [0, 1)."}
    )
    patchout_rows: int = field(
        default=0, metadata={"help": "Rows of patches (frequency) that each training batch leaves out, at random."}
    )
    patchout_columns: int = field(
        default=0,
        metadata={"help": "Columns of patches (time) that it leaves out; of shorter clips the same share."},
    )
    patchout_patches: int = field(
        default=0, metadata={"help": "Single patches that it leaves out of the rest; of shorter clips the same share."}
    )
    drop_path_rate: float = field(
        default=0.0,
        metadata={
            "help": "Share of the clips of a training batch that skip attention or MLP of the last layer, in [0, 1); "
            "it rises linearly from 0 in the first layer."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2, ...; Transformers chooses if unset."}
    )
    sampling_rate: int | None = field(
        default=None, metadata={"help": "Hz; clips with another rate are resampled. 16000 if nothing says otherwise."}
    )
    mean: float | None = field(default=None, metadata={"help": "Mean of the log-mel features of the data."})
    std: float | None = field(default=None, metadata={"help": "Their deviation. Default of both: AudioSet's."})
    problem_type: Literal["single_label_classification", "multi_label_classification"] = field(
        default="single_label_classification", metadata={"help": "One label a clip, or any number."}
    )

    def given(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of these keys that have a value."""
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def __post_init__(self):
        shares = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
        check_numbers(self, {**dict.fromkeys(shares, "[0, 1)"), "initializer_range": "(0, inf)"})
