"""The keys of a recipe: four dataclasses, one a block."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments


@dataclass
class ModelArguments:
    """What the model and its feature extractor are. `None` keeps what the checkpoint or the size says."""

    model_name_or_path: str = field(
        default="base384",
        metadata={
            "help": "Folder or Hub repository of an AST or of a distilled DeiT, weight file of the original (.pth) or "
            "of DeiT, or a size alone (tiny224, small224, base224, base384) for random weights."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Frames (10 ms apart) of the spectrograms; longer clips are cut."}
    )
    num_mel_bins: int | None = field(default=None, metadata={"help": "Mel bins of the spectrograms."})
    frequency_stride: int | None = field(default=None, metadata={"help": "Mel bins between patches."})
    time_stride: int | None = field(default=None, metadata={"help": "Frames between patches."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width; for random weights only."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Layers; for random weights only."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Heads; for random weights only."})
    intermediate_size: int | None = field(default=None, metadata={"help": "MLP width; for random weights only."})
    hidden_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout, in [0, 1)."})
    attention_probs_dropout_prob: float | None = field(
        default=None, metadata={"help": "Dropout on attention weights, in [0, 1)."}
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


@dataclass
class DataArguments:
    """Where the rows come from; see `modeling_ast.data.sources.load_splits`."""

    dataset_name: str = field(
        metadata={
            "help": "synthetic, a folder with a sub-folder a class, a CSV file, Parquet (file or folder), or the name "
            "of a data set on the Hub."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    audio_column_name: str = field(default="audio", metadata={"help": "Column with the sound."})
    label_column_name: str = field(default="label", metadata={"help": "Column with the label or labels."})
    audio_dir: str | None = field(
        default=None, metadata={"help": "Where the paths of a CSV file start, relative to the file."}
    )
    label_separator: str = field(default=",", metadata={"help": "Between labels in a CSV file."})
    fold_column_name: str | None = field(default=None, metadata={"help": "Column with the number of the fold."})
    eval_fold: int | None = field(default=None, metadata={"help": "The fold to hold out."})
    split_column_name: str | None = field(
        default=None, metadata={"help": "Column that says train, validation or test."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training clips to hold out where the data holds out none."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many clips, to try things."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for each of the other splits."})
    linear_baseline: bool = field(
        default=False,
        metadata={"help": "Report what a logistic regression on the mean and deviation of the features reaches."},
    )

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1, got {getattr(self, name)}.")
        if not self.label_separator:
            raise ValueError("Expected a label_separator, got nothing.")


@dataclass
class AugmentArguments:
    """What is done to training clips. 0 switches off."""

    freq_mask_bins: int = field(default=0, metadata={"help": "Mask up to this many (less one) mel bins in a row."})
    time_mask_frames: int = field(default=0, metadata={"help": "Mask up to this many (less one) frames in a row."})
    roll_frames: int = field(default=0, metadata={"help": "Roll in time by up to this many frames, either way."})

    def __post_init__(self):
        for name in ("freq_mask_bins", "time_mask_frames", "roll_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"Expected {name} of at least 0, got {getattr(self, name)}.")


@dataclass
class ASTTrainingArguments(TrainingArguments):
    """Transformers' `TrainingArguments`, with what audio rows need, and one more key."""

    # Rows are decoded by a transform from a column that the model's forward does not know.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false for audio rows."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew in a folder that holds a run; its checkpoints are removed."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay false: the audio column is read by a transform.")
        if self.do_predict:
            raise ValueError(
                "do_predict has no effect: every held-out split is evaluated, and nothing else predicted."
            )
        self.label_names = self.label_names or ["labels"]
        # `Trainer` takes a path or True (the last checkpoint of the folder); a command line gives text.
        if str(self.resume_from_checkpoint).lower() in ("true", "false", "none"):
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true" or None
