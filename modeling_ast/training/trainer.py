"""What an epoch does: the original's sampling, optimiser, schedule, losses, record and average of the weights."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from modeling_ast.data.files import folder_written_beside
from modeling_ast.data.loss_weights import LossWeights
from modeling_ast.data.metrics import to_probabilities
from modeling_ast.data.recipes import RecipeError
from modeling_ast.modeling_ast import classification_loss
from modeling_ast.training.adapters import ADAPTER_FOLDER, merge_weights, save_adapter
from modeling_ast.training.augment import smooth_labels
from modeling_ast.training.checkpoints import ResumableTrainer, ends_epoch
from modeling_ast.training.faults import saving
from modeling_ast.training.features import AugmentedFeatures
from modeling_ast.training.kept_batches import KeptBatches, as_it_is, read_batches
from modeling_ast.training.losses import weighted_loss
from modeling_ast.training.rates import rate_factors, split_groups
from modeling_ast.training.rows import TrainingStream, collate_with_place
from modeling_ast.training.sampling import StreamSampler, TrainingSampler
from modeling_ast.training.schedule import step_schedule

logger = logging.getLogger(__name__)


class ASTTrainer(ResumableTrainer):
    """A trainer whose training batches are made by a collator of their own and drawn in an order of their own.

    Args:
        train_dataset: `TrainingRows` or a `TrainingStream`.
        train_collator: Makes training batches; `data_collator` makes the others.
        train_features: Of what `train_collator` hands over in place of features.
        sampling_weights: Of the training clips, to draw with replacement; `None` shuffles.
        clip_seconds: Lengths of the training clips, to batch those of similar length; `None` mixes them.
        loss_weights: Of the labels, in the loss of training; those of evaluations stay without. `None` means none.
        adapters: In the model, as `add_adapters` puts them there: averages are theirs, and they are merged in the end.
        record: As for `ResumableTrainer`.

    Raises:
        RecipeError: Adapters with FSDP or DeepSpeed.
    """

    def __init__(
        self,
        *args,
        train_collator: Callable | None = None,
        train_features: AugmentedFeatures | None = None,
        sampling_weights: torch.Tensor | None = None,
        clip_seconds: torch.Tensor | None = None,
        loss_weights: LossWeights | None = None,
        adapters: Any = None,
        **kwargs,
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Label smoothing is not compatible")  # it is here, with all labels
            super().__init__(*args, **kwargs)
        self.label_smoother = None  # which takes class indices alone
        self.train_collator, self.train_features = train_collator, train_features
        self.sampling_weights = sampling_weights
        self.clip_seconds = clip_seconds
        self.loss_weights = loss_weights
        self.teachers: list[str] = []  # whose targets these are
        self.targets_kept: dict[str, Any] = {}  # and how what they say was kept
        self._first_factor = 1.0  # of the optimiser's first group, of the rate of the run
        self.num_taught_epochs: int | None = None  # after which the clips and their draws begin again
        self.adapters = adapters
        self._kept_batches: KeptBatches | bool | None = None  # of `eval_dataset`; `False` where they do not fit
        if adapters is not None and self.is_sharded:
            raise RecipeError("lora_rank cannot be used with FSDP or DeepSpeed: leave them out, or lora_rank.")
        self.add_callback(_EpochCallback(self))

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the script writes a card that says more, and `push_to_hub` must not replace it."""

    # Data.

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's own, with the collator of training."""
        collator = self.train_collator
        if isinstance(self.train_dataset, TrainingStream):
            self.train_dataset.divide(self.args.world_size * max(1, self.args.dataloader_num_workers))
            collator = partial(collate_with_place, collator=self.train_collator)
        with changed(self, data_collator=collator):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As the Trainer's own; what is evaluated on while it trains is read once, where it fits into memory."""
        args, comes_again = self.args, eval_dataset is self.eval_dataset
        if comes_again and self._kept_batches is None and self.is_in_train:
            own = self._evaluation_loader(eval_dataset).batch_sampler, self.data_collator
            readers = args.dataloader_num_workers, args.dataloader_multiprocessing_context
            is_dispatched = args.accelerator_config.dispatch_batches  # by the first process, which reads for all
            kept = None if is_dispatched else read_batches(eval_dataset, *own, *readers, args.world_size)
            self._kept_batches = kept or False
        if not (comes_again and self._kept_batches):
            return self._evaluation_loader(eval_dataset)
        without = dict.fromkeys(("dataloader_prefetch_factor", "dataloader_multiprocessing_context"))
        with changed(self, data_collator=as_it_is), changed(args, dataloader_num_workers=0, **without):
            return self._evaluation_loader(self._kept_batches)

    def _evaluation_loader(self, rows: Any) -> DataLoader:
        """The Trainer's own, which with persistent workers would give the clips that it gave first, of any rows."""
        with changed(self.args, dataloader_persistent_workers=False):
            return super().get_eval_dataloader(rows)

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        """Without pinned memory on a CPU, of which torch would warn."""
        pinned = self.args.dataloader_pin_memory and self.args.device.type != "cpu"
        with changed(self.args, dataloader_pin_memory=pinned):
            return super()._get_dataloader(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        """An order of our own, which is the same for any number of processes, but for a stream."""
        args = self.args
        if isinstance(self.train_dataset, TrainingStream):
            num_draws = args.max_steps * self.global_batch_size
            return StreamSampler(num_draws, self._train_batch_size, self.train_dataset.num_parts)
        self.train_sampler = self.make_sampler()
        return self.train_sampler

    def make_sampler(self) -> TrainingSampler:
        """The order of the clips of a table."""
        return TrainingSampler(
            len(self.train_dataset),
            self.global_batch_size,
            self.args.order_seed,
            weights=self.sampling_weights,
            drop_last=self.args.dataloader_drop_last,
            clip_seconds=self.clip_seconds,
            samples_per_epoch=self.args.samples_per_epoch,
            num_epochs=self.num_taught_epochs,
        )

    def _progress(self) -> dict[str, Any]:
        """As `ResumableTrainer`'s, and by whom it was taught."""
        taught = {"teachers": self.teachers, "targets_kept": self.targets_kept}
        return {**super()._progress(), **taught, "num_taught_epochs": self.num_taught_epochs}

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        """As `ResumableTrainer`'s; epochs that were taught meanwhile are left out.

        Raises:
            RecipeError: By others than those whose targets there are now.
        """
        super()._restore_progress(progress)
        if (before := progress.get("teachers", self.teachers)) != self.teachers:
            began, now = (f"those of {', '.join(each)}" if each else "none" for each in (before, self.teachers))
            raise RecipeError(f"Expected the teacher_targets that the run began with, {began}, got {now}.")
        if (kept := progress.get("targets_kept", self.targets_kept)) != self.targets_kept:
            raise RecipeError(
                f"Expected the teacher_targets that the run began with, of {kept}, got {self.targets_kept}."
            )
        self.num_taught_epochs = progress.get("num_taught_epochs", self.num_taught_epochs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As the Trainer's own, and features of waveforms, now that these are where the model is."""
        inputs = super()._prepare_inputs(inputs)
        return self.train_features.compute_handed_over(inputs) if "waveforms" in inputs else inputs

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the Trainer's own, also of waveforms, by the size of their features."""
        if "waveforms" in inputs:
            shape = *inputs["sources"].shape, self.model.config.num_mel_bins
            inputs = {"input_values": torch.empty(shape, device="meta")}
        return super().floating_point_ops(inputs)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Of the training clips, the draws of an epoch."""
        is_drawn = dataloader.dataset is self.train_dataset and hasattr(self, "train_sampler")
        return len(self.train_sampler) if is_drawn else super().num_examples(dataloader)

    def get_batch_samples(self, *args, **kwargs):
        """As the Trainer's own; a stream notes which clips an update takes."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if isinstance(self.train_dataset, TrainingStream):
            for batch in batches:
                self.train_dataset.note_place(batch)
        return batches, num_items

    # Optimiser and schedule.

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None) -> tuple[Any, Any]:
        """Adam in place of AdamW where the decay is the original's."""
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return (optimizer_class if args.decoupled_weight_decay else torch.optim.Adam), settings

    def get_decay_parameter_names(self, model) -> list[str]:
        """All parameters where the decay is the original's, which spares none."""
        if self.args.decoupled_weight_decay:
            return super().get_decay_parameter_names(model)
        return [name for name, _ in model.named_parameters()]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Layers and classifier have rates of their own."""
        is_made = self.optimizer is not None  # with the rates that it shall have
        optimizer = super().create_optimizer(model)
        if not is_made:
            model = self.model if model is None else model
            args = self.args
            factors = rate_factors(model, args.layer_learning_rate_decay, args.head_learning_rate_factor)
            self._first_factor = split_groups(optimizer, factors)
        return optimizer

    def _get_learning_rate(self) -> float:
        """What is logged: the full rate, also where no parameter that is trained has it."""
        return super()._get_learning_rate() / self._first_factor

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The original's schedule, which Transformers does not know."""
        args = self.args
        if args.lr_step_factor is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = step_schedule(
            self.optimizer if optimizer is None else optimizer,
            steps_per_epoch=math.ceil(len(self.train_sampler) / self.global_batch_size),
            first_epochs=args.lr_step_first_epochs,
            epochs_per_step=args.lr_step_epochs,
            factor=args.lr_step_factor,
            warmup_steps=args.get_warmup_steps(num_training_steps),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # What happens once an epoch.

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Smooth labels of every kind, take weights into the loss of training, and remember it."""
        config = self.model.config
        is_multi_label = config.problem_type == "multi_label_classification"
        if model.training and self.args.label_smoothing_factor:
            smoothing = (self.args.label_smoothing_factor, config.num_labels, is_multi_label)
            inputs = {**inputs, "labels": smooth_labels(inputs["labels"], *smoothing)}
        if model.training and self.loss_weights is not None:
            outputs = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
            loss = weighted_loss(outputs.logits, inputs["labels"], self.loss_weights, is_multi_label)
            result = (loss, outputs) if return_outputs else loss
        else:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            loss = (result[0] if return_outputs else result).detach().float().mean()
            share = 1 / self.args.gradient_accumulation_steps  # of an update
            self.losses.add(loss, share, self.state.global_step + 1)
        return result

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """Keep the scores, and take the loss of all clips together.

        The Trainer's own weighs a smaller last batch like a whole one, and counts the clips twice that complete the
        batches of several processes.
        """
        if self.is_fsdp_enabled and not self.accelerator._models:  # not trained, which alone would shard it
            self.is_fsdp_enabled = False
            self._move_model_to_device(self.model, self.args.device)
        self.last_evaluation = super().evaluation_loop(*args, **kwargs)
        if self.last_evaluation.predictions is not None:  # as without metrics
            (name,) = [name for name in self.last_evaluation.metrics if name.endswith("_loss")]
            logits, labels = map(torch.as_tensor, (self.last_evaluation.predictions, self.last_evaluation.label_ids))
            loss = classification_loss(logits, labels, self.model.config.problem_type)
            self.last_evaluation.metrics[name] = loss.item()
        return self.last_evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """While it trains, write each evaluation down, beside the mean loss since the last one."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_in_train and self.record is not None:
            train_loss = self.losses.recent_mean()
            if self.is_world_process_zero():
                measured = {name.removeprefix(f"{metric_key_prefix}_"): value for name, value in metrics.items()}
                row = {"epoch": self.state.epoch, "learning_rate": self.last_rate, "train_loss": train_loss}
                logits, labels = self.last_evaluation.predictions, self.last_evaluation.label_ids
                self.record.add(row, measured, to_probabilities(logits, self.model.config.problem_type), labels)
            self.losses.forget_recent()
        return metrics

    def average_weights(self, is_epoch_end: bool) -> None:
        """Take the weights into the average: after each update, or after those updates or epochs that are averaged."""
        ended_epoch = round(self.state.epoch) if is_epoch_end else None
        if self.args.ema_decay is None and not self.args.is_averaged(self.state.global_step, ended_epoch):
            return
        weights = self.accelerator.get_state_dict(self.model_wrapped) if self.is_sharded else self.model.state_dict()
        if self.is_world_process_zero():
            self.average.update(weights)

    # Adapters.

    def averaged_model(self) -> PreTrainedModel:
        """With adapters the model that their average is merged into."""
        if self.adapters is None:
            return super().averaged_model()
        return merge_weights(self.average.weights, self.adapters)

    def save_end(self, metrics: dict[str, float]) -> None:
        """As `ResumableTrainer`'s, after adapters are saved and merged: from here on the model is one without."""
        if self.adapters is not None:
            folder = Path(self.args.output_dir) / ADAPTER_FOLDER
            if self.args.should_save:
                with saving(folder), folder_written_beside(folder) as unfinished:
                    save_adapter(unfinished, self.adapters)
            self.adapters.merge_and_unload()
        super().save_end(metrics)

    def load_trained(self, path: Path) -> None:
        """As `ResumableTrainer`'s, into a model without adapters; they stay where the weights cannot be read."""
        if self.adapters is not None:
            with torch.device("meta"):
                type(self.model)(self.model.config).load_state_dict(load_file(path), assign=True)
            self.adapters.unload()
        super().load_trained(path)


@contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    """With other values of some attributes, for a while."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class _EpochCallback(TrainerCallback):
    def __init__(self, trainer: ASTTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        # Accelerate does not reach the sampler of a run that is resumed within an epoch by several processes.
        if hasattr(self.trainer, "train_sampler"):
            self.trainer.train_sampler.set_epoch(int(state.epoch))

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.trainer.last_rate = self.trainer._get_learning_rate()  # before the schedule goes on

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.trainer.average_weights(ends_epoch(state))
