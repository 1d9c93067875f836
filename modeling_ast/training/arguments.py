"""The keys of a recipe: four dataclasses, one a block."""

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

# What the best epoch can be chosen by; the first is of the logits, the others are those of `data.metrics`.
BEST_METRICS = ("loss", "accuracy", "mAP", "mAUC", "d_prime", "macro_f1", "micro_f1")

# What numbers can be, where that is not said in words below; a round bracket excludes its end.
_INTERVALS = {
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), "[0, 1)"),
    # Partial sums of so many draws; larger ones only make every weight 0.5.
    "mixup_alpha": "[1, 1000]",
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), "[0, inf)"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), "[0, 1)"),
    **dict.fromkeys(("num_train_epochs", "save_steps", "logging_steps"), "(0, inf)"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), "[1, inf)"),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit"), "[1, inf)"),
    **dict.fromkeys(("eval_steps", "eval_delay", "dataloader_num_workers"), "[0, inf)"),
    **dict.fromkeys(("seed", "data_seed"), "[0, 4294967296)"),  # numpy's
}
# Keys of Transformers whose other values would be wrong without a word: the only right one, and why.
_ONLY_VALUES = {
    "remove_unused_columns": (False, "the audio column is read by a transform"),
    "enable_jit_checkpoint": (False, "SIGTERM and Ctrl-C save a checkpoint anyway, and two that listen would collide"),
    "ignore_data_skip": (False, "a resumed epoch goes on with the clips that it has not had yet"),
    "dataloader_in_order": (True, "a resumed run goes on in the order of the draws"),
    "prediction_loss_only": (False, "all held-out clips are scored"),
    "batch_eval_metrics": (False, "the metrics are of all held-out clips together"),
    "eval_do_concat_batches": (True, "the metrics are of all held-out clips together"),
    "include_for_metrics": ([], "the metrics need scores and labels alone"),
    "use_liger_kernel": (False, "it has no kernel for this model"),
}


def _check_numbers(block: Any) -> None:
    """Refuse numbers of a block of arguments that are none, infinite, or outside of their interval."""
    for each in dataclasses.fields(block):
        value = getattr(block, each.name, None)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise ValueError(f"Expected {each.name} to be a finite number, got {value}.")
        interval = _INTERVALS.get(each.name, "(-inf, inf)")
        low, high = map(float, interval[1:-1].split(","))
        is_inside = (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
        if not (low < value < high or is_inside):
            raise ValueError(f"Expected {each.name} in {interval}, got {value}.")


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

    def __post_init__(self):
        _check_numbers(self)


@dataclass
class DataArguments:
    """Where the rows come from; see `modeling_ast.data.sources.load_splits`."""

    dataset_name: str = field(
        metadata={
            "help": "synthetic, a folder with a sub-folder a class, a list (.csv, .tsv, .txt, .jsonl, or .json as the "
            "original's), Parquet (file or folder), or the name of a data set on the Hub."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "A list or a Parquet file of the clips to choose on."}
    )
    test_file: str | None = field(default=None, metadata={"help": "The same for the clips to report on."})
    label_file: str | None = field(
        default=None,
        metadata={
            "help": "Label table (CSV: index, mid, display_name) that gives the labels and their order: a path, or "
            "audioset, esc50 or speech_commands_v2."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    audio_column_name: str = field(default="audio", metadata={"help": "Column with the sound."})
    label_column_name: str = field(default="label", metadata={"help": "Column with the label or labels."})
    audio_dir: str | None = field(
        default=None, metadata={"help": "Where the paths of a list start, relative to the list."}
    )
    label_separator: str = field(default=",", metadata={"help": "Between labels in a list."})
    fold_column_name: str | None = field(
        default=None, metadata={"help": "Column with the fold: a whole number, or a name such as a speaker's."}
    )
    eval_fold: str | None = field(
        default=None,
        metadata={"help": "The fold to hold out, needed with fold_column_name but by run_folds.py, which gives each."},
    )
    split_column_name: str | None = field(
        default=None, metadata={"help": "Column that says train, validation or test."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training clips to hold out where the data holds out none."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Train on clips while they arrive from the Hub; needs max_steps."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only so many clips, of a stream the first."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for each of the other splits."})
    max_bad_clips: int = field(
        default=0,
        metadata={
            "help": "Training clips that may turn out not to be decodable: so many are replaced by others (a stream "
            "goes on without them) and named in bad_clips.csv. One more ends the run; held-out clips always do."
        },
    )
    ignore_length: bool = field(
        default=False,
        metadata={
            "help": "Read sound files whose headers announce more sound than they hold, or less, as far as they go; "
            "else they are refused."
        },
    )
    leave_out_unknown_labels: bool = field(
        default=False,
        metadata={
            "help": "Where a trained model is evaluated, leave out labels that it does not know: of one label a clip "
            "with their clips, of several alone. Otherwise they are an error."
        },
    )
    linear_baseline: bool = field(
        default=False,
        metadata={"help": "Report what a logistic regression on the mean and deviation of the features reaches."},
    )

    def __post_init__(self):
        _check_numbers(self)
        for name in ("max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1, got {getattr(self, name)}.")
        if self.max_bad_clips < 0:
            raise ValueError(f"Expected max_bad_clips of at least 0, got {self.max_bad_clips}.")
        if not self.label_separator:
            raise ValueError("Expected a label_separator, got nothing.")
        not_for_streams = (
            *("audio_dir", "fold_column_name", "split_column_name", "validation_file", "test_file"),
            *("linear_baseline", "leave_out_unknown_labels"),
        )
        for name in not_for_streams if self.streaming else ():
            if getattr(self, name):
                raise ValueError(f"{name} has no effect on a stream: leave it out, or streaming.")


@dataclass
class AugmentArguments:
    """What is done to training clips. 0 or false switches off."""

    mixup_probability: float = field(
        default=0.0, metadata={"help": "Share of the clips that another one, drawn from all, is mixed into."}
    )
    mixup_alpha: int = field(default=10, metadata={"help": "Mixing weights are drawn from Beta(alpha, alpha)."})
    random_crop: bool = field(default=False, metadata={"help": "Take any part of a longer clip, not its head."})
    freq_mask_bins: int = field(default=0, metadata={"help": "Mask up to this many (less one) mel bins in a row."})
    time_mask_frames: int = field(
        default=0,
        metadata={
            "help": "Mask up to this many (less one) frames in a row; with padding longest, of a clip shorter than "
            "max_length the same share."
        },
    )
    max_noise: float = field(
        default=0.0, metadata={"help": "Add uniform noise of a drawn amplitude below this to normalised features."}
    )
    roll_frames: int = field(
        default=0,
        metadata={
            "help": "Move in time by up to this many frames, either way; with padding longest, a clip shorter than "
            "max_length by the same share."
        },
    )
    original_noise_and_roll: bool = field(
        default=False, metadata={"help": "Noise above zero alone, and padding goes round, as in the original."}
    )

    def __post_init__(self):
        _check_numbers(self)
        for name in ("freq_mask_bins", "time_mask_frames", "max_noise", "roll_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"Expected {name} of at least 0, got {getattr(self, name)}.")
        if not 0 <= self.mixup_probability <= 1:
            raise ValueError(f"Expected mixup_probability between 0 and 1, got {self.mixup_probability}.")
        if self.original_noise_and_roll and not (self.max_noise or self.roll_frames):
            raise ValueError("original_noise_and_roll has no effect without max_noise or roll_frames.")


@dataclass
class ASTTrainingArguments(TrainingArguments):
    """Transformers' `TrainingArguments`, with what audio rows and the original's training need."""

    # Rows are decoded by a transform from a column that the model's forward does not know.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false for audio rows."})
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Read the data, make the model, take a few updates, and tell how long the whole run will take; "
            "nothing is written."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew in a folder that holds a run; its checkpoints are removed."}
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Clips per process and accumulation step; follows from global_batch_size."}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Clips per update, over all processes and accumulation steps."}
    )
    class_balanced_sampling: bool = field(
        default=False, metadata={"help": "Draw training clips with replacement, rare classes more often."}
    )
    decoupled_weight_decay: bool = field(
        default=True,
        metadata={
            "help": "true: AdamW, without decay of biases and norms. false: Adam with L2 on every parameter, as the "
            "original."
        },
    )
    head_learning_rate_factor: float = field(
        default=1.0, metadata={"help": "The classifier's learning rate, in multiples of the others'."}
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train the classifier alone (linear probe)."})
    lr_step_factor: float | None = field(
        default=None, metadata={"help": "Multiply a constant rate by this, again and again, between epochs."}
    )
    lr_step_first_epochs: int = field(default=0, metadata={"help": "Epochs before lr_step_factor first applies."})
    lr_step_epochs: int = field(default=1, metadata={"help": "Epochs between its later applications."})
    weight_average_start: int | None = field(
        default=None, metadata={"help": "First epoch, counted from 1, of the average of the epochs' weights."}
    )
    weight_average_end: int | None = field(default=None, metadata={"help": "Last epoch of it; the last one if unset."})
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End the run after so many epochs in a row without a better metric_for_best_model; needs "
            "eval_strategy epoch."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "By how much the metric has to be better to count, with early_stopping_patience."},
    )
    # No parameter of this model goes unused.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DistributedDataParallel looks for parameters without gradients."}
    )

    def __post_init__(self):
        _check_numbers(self)
        super().__post_init__()
        if self.hub_token is not None:  # Transformers saves these arguments beside the model, and uploads the file
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        for name, (only, reason) in _ONLY_VALUES.items():
            if getattr(self, name, only) != only:
                shown = str(only).lower() if isinstance(only, bool) else " ".join(only) or "empty"
                raise ValueError(f"{name} must stay {shown}: {reason}.")
        if self.accelerator_config.split_batches:
            raise ValueError("split_batches of accelerator_config would divide global_batch_size once more.")
        if self.do_predict:
            raise ValueError(
                "do_predict has no effect: every held-out split is evaluated, and nothing else predicted."
            )
        if (self.metric_for_best_model or "loss").removeprefix("eval_") not in BEST_METRICS:
            raise ValueError(
                f"Expected metric_for_best_model to be one of {', '.join(BEST_METRICS)}, got "
                f"{self.metric_for_best_model}."
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                "Expected train_sampling_strategy to stay random (class_balanced_sampling chooses the other order), "
                f"got {self.train_sampling_strategy}."
            )
        self._divide_global_batch()
        self._check_schedule()
        if not self.decoupled_weight_decay and self.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(f"Expected optim adamw_torch with decoupled_weight_decay false, got {self.optim.value}.")
        if self.head_learning_rate_factor <= 0:
            raise ValueError(f"Expected head_learning_rate_factor above 0, got {self.head_learning_rate_factor}.")
        if self.weight_average_start is None and self.weight_average_end is not None:
            raise ValueError("weight_average_end has no effect without weight_average_start.")
        if self.weight_average_start is not None:
            last = self.num_train_epochs if self.weight_average_end is None else self.weight_average_end
            if not 1 <= self.weight_average_start <= last <= self.num_train_epochs:
                raise ValueError(
                    f"Expected weight averaging over epochs of 1 to {self.num_train_epochs:g}, got "
                    f"{self.weight_average_start} to {last:g}."
                )
        self._check_early_stopping()
        self.label_names = self.label_names or ["labels"]
        # `Trainer` takes a path or True (the last checkpoint of the folder); a command line gives text.
        if str(self.resume_from_checkpoint).lower() in ("true", "false", "none"):
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true" or None

    def _check_early_stopping(self) -> None:
        if self.early_stopping_patience is None:
            if self.early_stopping_threshold != 0:
                raise ValueError("early_stopping_threshold has no effect without early_stopping_patience.")
            return
        if self.early_stopping_patience < 1 or not 0 <= self.early_stopping_threshold < math.inf:
            raise ValueError(
                "Expected early_stopping_patience of at least 1 and early_stopping_threshold of at least 0, got "
                f"{self.early_stopping_patience} and {self.early_stopping_threshold}."
            )
        if self.eval_strategy != "epoch" or self.metric_for_best_model is None:
            raise ValueError(
                "Expected eval_strategy epoch and metric_for_best_model with early_stopping_patience, got "
                f"{self.eval_strategy.value} and {self.metric_for_best_model}."
            )

    def _divide_global_batch(self) -> None:
        if self.global_batch_size is not None and self.auto_find_batch_size:
            raise ValueError("auto_find_batch_size would change global_batch_size: use one of them.")
        parts = self.world_size * max(1, self.n_gpu) * self.gradient_accumulation_steps
        if self.global_batch_size is None or not self.do_train:
            self.per_device_train_batch_size = self.per_device_train_batch_size or 8  # Transformers' default
            return
        layout = f"{self.world_size * max(1, self.n_gpu)} device(s) x {self.gradient_accumulation_steps} step(s)"
        if self.global_batch_size < 1 or self.global_batch_size % parts:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} cannot be divided by {layout} of accumulation. Choose "
                "gradient_accumulation_steps, or the number of processes, so that it can."
            )
        share = self.global_batch_size // parts
        if self.per_device_train_batch_size not in (None, share):
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is {share} clips for each of {layout}, got "
                f"per_device_train_batch_size {self.per_device_train_batch_size}. Leave it out, or change "
                "gradient_accumulation_steps."
            )
        self.per_device_train_batch_size = share

    def _check_schedule(self) -> None:
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise ValueError("Expected lr_scheduler_type constant_with_warmup with warmup_steps, got constant.")
        if self.lr_step_factor is None:
            if self.lr_step_first_epochs != 0 or self.lr_step_epochs != 1:
                raise ValueError("lr_step_first_epochs and lr_step_epochs have no effect without lr_step_factor.")
            return
        if self.lr_scheduler_type not in ("constant", "constant_with_warmup"):
            raise ValueError(
                "Expected lr_scheduler_type constant or constant_with_warmup with lr_step_factor, got "
                f"{self.lr_scheduler_type.value}."
            )
        if self.lr_step_factor <= 0 or self.lr_step_first_epochs < 0 or self.lr_step_epochs < 1:
            raise ValueError(
                "Expected lr_step_factor above 0, lr_step_first_epochs of at least 0 and lr_step_epochs of at least "
                f"1, got {self.lr_step_factor}, {self.lr_step_first_epochs} and {self.lr_step_epochs}."
            )
