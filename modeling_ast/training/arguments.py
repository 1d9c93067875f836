"""The keys of a recipe that trains: augmentation and training; those of model and data are in `data/recipes.py`."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from transformers import TrainingArguments

from modeling_ast.data.functions import import_function
from modeling_ast.data.metrics import COUNT_LEFT_OUT, METRICS
from modeling_ast.data.model_arguments import ModelArguments, check_numbers
from modeling_ast.data.recipes import DataArguments, parse_blocks, read_recipe
from modeling_ast.training.adapters import TARGETS, refuse_unusable_lora
from modeling_ast.training.combinations import refuse_unusable_keys
from modeling_ast.training.process_group import join_on_cpus, refuse_lone_processes
from modeling_ast.training.sharding import refuse_unusable_fsdp

# What the best epoch can be chosen by; the first is of the logits.
BEST_METRICS = ("loss", *(name for name in METRICS if name != COUNT_LEFT_OUT))

# What numbers can be, where that is not said in words below; a round bracket excludes its end.
_INTERVALS = {
    name: interval
    for interval, names in {
        "[0, 1]": "mixup_probability",
        "[0, 1)": "adam_beta1 adam_beta2 label_smoothing_factor hard_label_weight",
        "(0, 1)": "ema_decay",
        "(0, 1]": "layer_learning_rate_decay",
        "(0, inf)": "num_train_epochs save_steps logging_steps lr_step_factor head_learning_rate_factor lora_alpha",
        "[1, inf)": "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
        "save_total_limit lr_step_epochs weight_average_steps early_stopping_patience ddp_timeout num_freq_masks "
        "num_time_masks",
        "[0, inf)": "learning_rate weight_decay adam_epsilon max_grad_norm warmup_steps eval_steps eval_delay "
        "lora_rank dataloader_num_workers freq_mask_bins time_mask_frames max_noise roll_frames lr_step_first_epochs "
        "early_stopping_threshold",
        "[1, 1000000000]": "samples_per_epoch",  # whose order is in memory
        "[0, 100]": "gain_db",  # 16 bits hold 96 dB
        "[0, 4294967296)": "seed data_seed",  # numpy's
        "(0, 1000]": "mixup_alpha",  # larger ones only make every weight 0.5
    }.items()
    for name in names.split()
}
# Keys of Transformers whose other values would be wrong without a word: the only right one, and why.
_ONLY_VALUES = {
    "remove_unused_columns": (False, "the audio column is read by a transform"),
    "enable_jit_checkpoint": (False, "SIGTERM and Ctrl-C save a checkpoint anyway, and two that listen would collide"),
    "save_on_each_node": (False, "all machines share output_dir, and would write the same files at the same time"),
    "ignore_data_skip": (False, "a resumed epoch goes on with the clips that it has not had yet"),
    "dataloader_in_order": (True, "a resumed run goes on in the order of the draws"),
    "do_predict": (False, "every held-out split is evaluated, and nothing else predicted"),
    "train_sampling_strategy": ("random", "class_balanced_sampling chooses the other order"),
    "eval_on_start": (False, "results.csv has lines of trained epochs, and a resumed run would add one more"),
    "prediction_loss_only": (False, "all held-out clips are scored"),
    "batch_eval_metrics": (False, "the metrics are of all held-out clips together"),
    "eval_do_concat_batches": (True, "the metrics are of all held-out clips together"),
    "include_for_metrics": ([], "the metrics need scores and labels alone"),
    "use_liger_kernel": (False, "it has no kernel for this model"),
}


@dataclass
class AugmentArguments:
    """What is done to training clips. 0 or false switches off."""

    mixup_probability: float = field(
        default=0.0, metadata={"help": "Share of the clips that another one is mixed into."}
    )
    mixup_alpha: float = field(default=10, metadata={"help": "Mixing weights are drawn from Beta(alpha, alpha)."})
    mixup_partner: Literal["dataset", "batch"] = field(
        default="dataset",
        metadata={
            "help": "Which one: any of the training clips, which is decoded for that; or, of each two clips in a row "
            "of a batch, the other one, which is decoded anyway, and the only one of a stream."
        },
    )
    random_crop: bool = field(default=False, metadata={"help": "Take any part of a longer clip, not its head."})
    waveform_transform: str | None = field(
        default=None,
        metadata={
            "help": "module:function, beside the recipe, in the current folder or installed, that gets the waveform "
            "of each clip (numpy) and the sampling rate, before mixup, and returns another waveform."
        },
    )
    gain_db: float = field(
        default=0.0, metadata={"help": "Amplify by up to this many dB, either way; after mixup, before the features."}
    )
    freq_mask_bins: int = field(default=0, metadata={"help": "Mask up to this many (less one) mel bins in a row."})
    num_freq_masks: int = field(default=1, metadata={"help": "So many of them, which may overlap."})
    time_mask_frames: int = field(
        default=0,
        metadata={
            "help": "Mask up to this many (less one) frames in a row; with padding longest, of a clip shorter than "
            "max_length the same share."
        },
    )
    num_time_masks: int = field(default=1, metadata={"help": "So many of them, which may overlap."})
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
        check_numbers(self, _INTERVALS)
        if self.mixup_alpha == int(self.mixup_alpha):
            self.mixup_alpha = int(self.mixup_alpha)  # as recipes of earlier versions say it
        if self.mixup_partner != "dataset" and not self.mixup_probability:
            raise ValueError("mixup_partner has no effect without mixup_probability.")
        if self.original_noise_and_roll and not (self.max_noise or self.roll_frames):
            raise ValueError("original_noise_and_roll has no effect without max_noise or roll_frames.")
        for number, size in (("num_freq_masks", "freq_mask_bins"), ("num_time_masks", "time_mask_frames")):
            if getattr(self, number) > 1 and not getattr(self, size):
                raise ValueError(f"{number} has no effect without {size}.")


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
    class_weights: Literal["balanced"] | None = field(
        default=None,
        metadata={
            "help": "balanced: weigh each label in the loss of training by n / (K n_c), so that rare ones count as "
            "much as others: n labels of all training clips, n_c of the label, K labels."
        },
    )
    pos_weight: str | None = field(
        default=None,
        metadata={
            "help": "Of several labels a clip, multiply the loss of those that it has by this number, or by "
            "balanced: of each label, training clips without it over those with it."
        },
    )
    samples_per_epoch: int | None = field(
        default=None,
        metadata={
            "help": "Clips drawn in an epoch, such as 200000 of two million; without class_balanced_sampling an epoch "
            "goes on where the last one ended, so that each clip comes once before any comes twice."
        },
    )
    features_on_device: bool | None = field(
        default=None,
        metadata={
            "help": "Whether data workers hand over waveforms, of which the features are computed where the model is, "
            "with the same draws; if unset, on a GPU of NVIDIA or AMD. Elsewhere, and with DeepSpeed or "
            "dispatch_batches, workers compute them."
        },
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
    layer_learning_rate_decay: float = field(
        default=1.0,
        metadata={
            "help": "Each layer's learning rate, in multiples of that of what is above it, such as 0.75; in (0, 1]. "
            "The final norm and the classifier learn at learning_rate, the embeddings slowest."
        },
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train the classifier alone (linear probe)."})
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "Train the classifier and, beside frozen layers, LoRA's matrices of this rank; 0 trains all. The "
            "model that they are merged into is saved, and the adapter in adapter/."
        },
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Over lora_rank, the scale of the adapter; twice the rank if unset."}
    )
    lora_targets: list[str] | None = field(
        default=None,
        metadata={"help": f"Layers with an adapter, of {', '.join(TARGETS)}; all of them if unset."},
    )
    lr_step_factor: float | None = field(
        default=None, metadata={"help": "Multiply a constant rate by this, again and again, between epochs."}
    )
    lr_step_first_epochs: int = field(default=0, metadata={"help": "Epochs before lr_step_factor first applies."})
    lr_step_epochs: int = field(default=1, metadata={"help": "Epochs between its later applications."})
    weight_average_start: int | None = field(
        default=None,
        metadata={
            "help": "First epoch, counted from 1, of the average of the epochs' weights; with weight_average_steps "
            "the first update."
        },
    )
    weight_average_end: int | None = field(
        default=None, metadata={"help": "Last epoch, or update, of it; the last one if unset."}
    )
    weight_average_steps: int | None = field(
        default=None,
        metadata={"help": "Average the weights after every so many updates, and not after epochs, as for a stream."},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keep an exponential average of the weights, of which each update keeps this share and takes the "
            "rest from the model, such as 0.999; in (0, 1). It is evaluated at the end and saved in weight_average/. "
            "Not together with weight_average_start."
        },
    )
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
    teacher_targets: str | None = field(
        default=None,
        metadata={
            "help": "Train on what teachers have said of each augmented clip: the folder that modeling-ast teach has "
            "made with this recipe and seed."
        },
    )
    hard_label_weight: float = field(
        default=0.0,
        metadata={"help": "Share of the labels themselves in what is trained on with teacher_targets, in [0, 1)."},
    )
    # No parameter of this model goes unused.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DistributedDataParallel looks for parameters without gradients."}
    )

    def __post_init__(self):
        check_numbers(self, _INTERVALS)
        join_on_cpus(self)
        super().__post_init__()
        refuse_unusable_fsdp(self)
        refuse_lone_processes(self)
        refuse_unusable_lora(self)
        if self.hub_token is not None:  # Transformers saves these arguments beside the model, and uploads the file
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        for name, (only, reason) in _ONLY_VALUES.items():
            if getattr(self, name, only) != only:
                shown = str(only).lower() if only != [] else "empty"
                raise ValueError(f"{name} must stay {shown}: {reason}.")
        if self.accelerator_config.split_batches:
            raise ValueError("split_batches of accelerator_config would divide global_batch_size once more.")
        if (self.metric_for_best_model or "loss").removeprefix("eval_") not in BEST_METRICS:
            raise ValueError(
                f"Expected metric_for_best_model to be one of {', '.join(BEST_METRICS)}, got "
                f"{self.metric_for_best_model}."
            )
        self._divide_global_batch()
        self._check_schedule()
        if not self.decoupled_weight_decay and self.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(f"Expected optim adamw_torch with decoupled_weight_decay false, got {self.optim.value}.")
        if self.freeze_backbone and self.layer_learning_rate_decay != 1:
            raise ValueError("layer_learning_rate_decay has no effect with freeze_backbone: no layer is trained.")
        self._check_averages()
        self._check_early_stopping()
        self._check_loss_weights()
        self._check_teachers()
        self.label_names = self.label_names or ["labels"]
        # `Trainer` takes a path or True (the last checkpoint of the folder); a command line gives text.
        if str(self.resume_from_checkpoint).lower() in ("true", "false", "none"):
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true" or None

    @property
    def averages_weights(self) -> bool:
        """Whether a second model comes out of the run: the average."""
        return self.weight_average_start is not None or self.ema_decay is not None

    @property
    def order_seed(self) -> int:
        """Of the order of training clips."""
        return self.seed if self.data_seed is None else self.data_seed

    def is_averaged(self, update: int, ended_epoch: int | None) -> bool:
        """Whether the mean of weights takes those after an update, with which an epoch has ended, or none has."""
        number = ended_epoch if self.weight_average_steps is None else update
        if self.weight_average_start is None or number is None:
            return False
        last = math.inf if self.weight_average_end is None else self.weight_average_end
        return number % (self.weight_average_steps or 1) == 0 and self.weight_average_start <= number <= last

    def _check_averages(self) -> None:
        start, end, steps = self.weight_average_start, self.weight_average_end, self.weight_average_steps
        if self.ema_decay is not None and start is not None:
            raise ValueError("Expected one average of the weights, got ema_decay and weight_average_start.")
        if start is None:
            for name in ("weight_average_end", "weight_average_steps"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect without weight_average_start.")
            return
        is_told = (steps is None) == (self.max_steps <= 0)  # else the length is told in the other of both
        total = (self.num_train_epochs if steps is None else self.max_steps) if is_told else math.inf
        last = total if end is None else end
        if not 1 <= start <= last <= total:
            raise ValueError(
                f"Expected weight averaging over {'epochs' if steps is None else 'updates'} of 1 to {total:g}, got "
                f"{start} to {last:g}."
            )
        if steps is not None and -(-start // steps) * steps > last:
            raise ValueError(f"Expected weight_average_steps to divide an update of {start} to {last:g}, got {steps}.")

    def _check_early_stopping(self) -> None:
        if self.early_stopping_patience is None:
            if self.early_stopping_threshold != 0:
                raise ValueError("early_stopping_threshold has no effect without early_stopping_patience.")
            return
        if self.eval_strategy != "epoch" or self.metric_for_best_model is None:
            raise ValueError(
                "Expected eval_strategy epoch and metric_for_best_model with early_stopping_patience, got "
                f"{self.eval_strategy.value} and {self.metric_for_best_model}."
            )

    def _check_loss_weights(self) -> None:
        weighs = [name for name in ("class_weights", "pos_weight") if getattr(self, name) is not None]
        if self.teacher_targets is not None and weighs:
            raise ValueError(f"{weighs[0]} has no place beside teacher_targets: what teachers say is learnt as it is.")
        if self.class_balanced_sampling and "balanced" in (self.class_weights, self.pos_weight):
            raise ValueError(f"Expected one way to balance labels, got class_balanced_sampling and {weighs[0]}.")
        if self.class_weights == self.pos_weight == "balanced":
            raise ValueError("Expected one way to balance labels, got class_weights and pos_weight.")
        if self.pos_weight in (None, "balanced"):
            return
        try:
            number = float(self.pos_weight)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError(f"Expected pos_weight balanced or a number in (0, inf), got {self.pos_weight}.")
        self.pos_weight = repr(number).removesuffix(".0")  # 3.0 is 3, also where a run goes on

    def _check_teachers(self) -> None:
        if self.teacher_targets is None:
            if self.hard_label_weight:
                raise ValueError("hard_label_weight has no effect without teacher_targets.")
            return
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no place beside teacher_targets: probabilities are soft.")
        if self.auto_find_batch_size:
            raise ValueError("auto_find_batch_size would change the order of the clips that teacher_targets are for.")

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


class Arguments(NamedTuple):
    """All that a recipe says."""

    model: ModelArguments
    data: DataArguments
    augment: AugmentArguments
    training: ASTTrainingArguments


def parse_arguments(
    argv: Sequence[str],
    kind: type[tuple] = Arguments,
    description: str = "Train and evaluate an Audio Spectrogram Transformer.",
) -> Arguments:
    """`[RECIPE] [--key value ...]` to the blocks of arguments; the command line wins over the recipe.

    Args:
        argv: Command line.
        kind: A `NamedTuple` of blocks, with at least those of `Arguments`.
        description: Of the command, for `--help`.

    Raises:
        RecipeError: Unknown or abbreviated keys, values of a wrong type, or a recipe that cannot be read.
    """
    argv = list(argv)
    path = argv.pop(0) if argv and not argv[0].startswith("-") else None
    recipe = [] if path is None else read_recipe(path)
    kinds = tuple(kind.__annotations__.values())
    arguments = kind(*parse_blocks(kinds, recipe + argv, description))
    refuse_unusable_keys(arguments)
    if (function := arguments.augment.waveform_transform) and arguments.training.do_train:
        import_function(function, "waveform_transform", None if path is None else Path(path).parent)
    return arguments
