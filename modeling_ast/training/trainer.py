"""Transformers' `Trainer`, with the original's sampling, optimiser, schedule, record and weight averaging."""

import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from modeling_ast.data.metrics import DivergedError, to_probabilities
from modeling_ast.data.recipes import RecipeError
from modeling_ast.modeling_ast import classification_loss
from modeling_ast.training.augment import smooth_labels
from modeling_ast.training.averaging import RunningAverage
from modeling_ast.training.checkpoints import ResumableTrainer
from modeling_ast.training.faults import GOES_ON, Stopped, StopRequest
from modeling_ast.training.output_dir import last_whole_checkpoint
from modeling_ast.training.results import EpochRecord
from modeling_ast.training.sampling import TrainingSampler
from modeling_ast.training.schedule import step_schedule

logger = logging.getLogger(__name__)


class ASTTrainer(ResumableTrainer):
    """A trainer whose training batches are made by a collator of their own and drawn in an order of their own.

    Args:
        train_dataset: `PositionedRows`.
        train_collator: Makes training batches; `data_collator` makes the others.
        sampling_weights: Of the training clips, to draw with replacement; `None` shuffles.
        clip_seconds: Lengths of the training clips, to batch those of similar length; `None` mixes them.
        record: Where each evaluation during training is written down.
    """

    def __init__(
        self,
        *args,
        train_collator: Callable | None = None,
        sampling_weights: torch.Tensor | None = None,
        clip_seconds: torch.Tensor | None = None,
        record: EpochRecord | None = None,
        **kwargs,
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Label smoothing is not compatible")  # it is here, with all labels
            super().__init__(*args, **kwargs)
        self.label_smoother = None  # which takes class indices alone
        self.train_collator = train_collator
        self.sampling_weights = sampling_weights
        self.clip_seconds = clip_seconds
        self.record = record
        decay = self.args.ema_decay
        # An average of every update stays where the weights are, which would take long to copy.
        self.average = RunningAverage() if decay is None else RunningAverage(decay, self.args.device)
        # Sums of the losses of updates and their numbers, since the last evaluation and since the beginning.
        self.loss_sum, self.num_losses, self.last_rate = torch.zeros(()), 0.0, 0.0
        self.total_loss, self.total_losses = torch.zeros(()), 0.0
        self.bad_update = torch.zeros((), dtype=torch.long)  # the first one whose loss was no number; 0 is none
        self.stop_request = StopRequest()
        self._is_saving_checkpoint, self._resumed_from = False, None
        self._stops_early = None  # the callback that ends a training without progress
        self.add_callback(_EpochCallback(self))

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the script writes a card that says more, and `push_to_hub` must not replace it."""

    # Data.

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's own, with the collator of training.

        Raises:
            RecipeError: A stream of clips of their own length, whose batches one process is to join for all.
        """
        is_stream = isinstance(self.train_dataset, IterableDataset)
        is_dispatched = self.args.world_size > 1 and self.args.accelerator_config.dispatch_batches is not False
        if is_stream and is_dispatched and getattr(self.processing_class, "padding", None) == "longest":
            raise RecipeError(
                'Expected accelerator_config {"dispatch_batches": false} for a stream with padding longest on several '
                "processes: else one of them joins the batches of all, which differ in length."
            )
        collator, self.data_collator = self.data_collator, self.train_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        pinned = self.args.dataloader_pin_memory
        self.args.dataloader_pin_memory = pinned and self.args.device.type != "cpu"  # of which torch would warn
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_pin_memory = pinned

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        args = self.args
        self.train_sampler = TrainingSampler(
            len(self.train_dataset if train_dataset is None else train_dataset),
            self.global_batch_size,
            args.seed if args.data_seed is None else args.data_seed,
            weights=self.sampling_weights,
            drop_last=args.dataloader_drop_last,
            clip_seconds=self.clip_seconds,
        )
        return self.train_sampler

    @property
    def global_batch_size(self) -> int:
        return self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    # Optimiser and schedule.

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None) -> tuple[Any, Any]:
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return (optimizer_class if args.decoupled_weight_decay else torch.optim.Adam), settings

    def get_decay_parameter_names(self, model) -> list[str]:
        if self.args.decoupled_weight_decay:
            return super().get_decay_parameter_names(model)
        return [name for name, _ in model.named_parameters()]  # the original's L2 spares none

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is not None:  # made before, with the rates that it shall have
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        factor = self.args.head_learning_rate_factor
        model = self.model if model is None else model
        head = {id(p) for name, p in model.named_parameters() if ".classifier." in f".{name}"}
        for group in list(optimizer.param_groups) if factor != 1 else ():
            of_head = [p for p in group["params"] if id(p) in head]
            group["params"] = [p for p in group["params"] if id(p) not in head]
            if of_head:
                optimizer.add_param_group({**group, "params": of_head, "lr": group["lr"] * factor})
        # The rate that is logged is the first group's, which must not be one without parameters.
        optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
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
        if model.training and self.args.label_smoothing_factor:
            config = self.model.config
            is_multi_label = config.problem_type == "multi_label_classification"
            smoothing = (self.args.label_smoothing_factor, config.num_labels, is_multi_label)
            inputs = {**inputs, "labels": smooth_labels(inputs["labels"], *smoothing)}
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            loss = (result[0] if return_outputs else result).detach().float().mean()
            share = 1 / self.args.gradient_accumulation_steps  # of an update
            self.loss_sum, self.num_losses = self.loss_sum + share * loss, self.num_losses + share
            self.total_loss, self.total_losses = self.total_loss + share * loss, self.total_losses + share
            # Remembered where the loss is: to look at it here would let a GPU wait for every update.
            before = self.bad_update.to(loss.device)
            is_first = (before == 0) & ~torch.isfinite(loss)
            self.bad_update = torch.where(is_first, torch.full_like(before, self.state.global_step + 1), before)
        return result

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        self.last_evaluation = super().evaluation_loop(*args, **kwargs)
        # The Trainer's own weighs a smaller last batch like a whole one, and counts the clips twice that complete the
        # batches of several processes.
        if self.last_evaluation.predictions is not None:  # as without metrics
            (name,) = [name for name in self.last_evaluation.metrics if name.endswith("_loss")]
            logits, labels = map(torch.as_tensor, (self.last_evaluation.predictions, self.last_evaluation.label_ids))
            loss = classification_loss(logits, labels, self.model.config.problem_type)
            self.last_evaluation.metrics[name] = loss.item()
        return self.last_evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_in_train and self.record is not None:
            train_loss = self._mean(self.loss_sum) / max(self.num_losses, 1)
            if self.is_world_process_zero():
                measured = {name.removeprefix(f"{metric_key_prefix}_"): value for name, value in metrics.items()}
                row = {"epoch": self.state.epoch, "learning_rate": self.last_rate, "train_loss": train_loss}
                logits, labels = self.last_evaluation.predictions, self.last_evaluation.label_ids
                self.record.add(row, measured, to_probabilities(logits, self.model.config.problem_type), labels)
            self.loss_sum, self.num_losses = torch.zeros(()), 0.0
        return metrics

    def average_weights(self, ends_epoch: bool) -> None:
        """Take the weights into the average: after each update, or after those epochs that are to be averaged."""
        args = self.args
        is_due = args.ema_decay is not None
        if ends_epoch and args.weight_average_start is not None:
            end = args.num_train_epochs if args.weight_average_end is None else args.weight_average_end
            is_due = args.weight_average_start <= round(self.state.epoch) <= end
        if not is_due:
            return
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        weights = self.accelerator.get_state_dict(self.model_wrapped) if is_sharded else self.model.state_dict()
        if self.is_world_process_zero():
            self.average.update(weights)

    # A run that diverged stops, and leaves the checkpoints from before.

    def check_loss(self) -> None:
        """Look at the losses since the beginning; all processes have to call it together.

        Raises:
            DivergedError: One of them was no number.
        """
        updates = self.accelerator.gather(self.bad_update.to(self.args.device).reshape(1))
        if (updates > 0).any():
            self._raise_diverged(f"The loss of update {updates[updates > 0].min().item()}")

    def _check_weights(self) -> None:
        parameters = [getattr(each, "to_local", lambda each=each: each)() for each in self.model.parameters()]
        is_bad = ~torch.stack([each.isfinite().all() for each in parameters]).all()
        if self.accelerator.gather(is_bad.to(self.args.device).reshape(1)).any():
            self._raise_diverged(f"A weight after update {self.state.global_step}")

    def _raise_diverged(self, what: str) -> None:
        checkpoint = last_whole_checkpoint(self.args.output_dir)
        kept = f"{checkpoint} is from before" if checkpoint else "No checkpoint was saved before"
        raise DivergedError(
            f"{what} is no finite number: did the training diverge? Try a lower learning_rate, more warmup_steps, "
            f"max_grad_norm 1, or bf16 in place of fp16, in another output_dir. {kept}."
        )

    def _gather(self, loss_sum: torch.Tensor) -> torch.Tensor:
        """A sum of losses of each process."""
        return self.accelerator.gather(loss_sum.to(self.args.device).reshape(1)).cpu()

    def _own(self, loss_sums: torch.Tensor | float) -> torch.Tensor:
        """This process's of the gathered sums; the mean, where there were another number of processes."""
        loss_sums = torch.as_tensor(loss_sums).reshape(-1)
        return loss_sums[self.args.process_index] if len(loss_sums) == self.args.world_size else loss_sums.mean()

    def _mean(self, loss_sum: torch.Tensor) -> float:
        """A sum of losses, averaged over the processes."""
        return self._gather(loss_sum).mean().item()


class _EpochCallback(TrainerCallback):
    def __init__(self, trainer: ASTTrainer):
        self.trainer = trainer
        self.saves_at_end, self.first_step = False, 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        resumed_from = self.trainer._resumed_from
        if resumed_from and state.best_global_step:  # also where the folder of the run has moved
            best = Path(resumed_from).parent / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else state.best_model_checkpoint
        if resumed_from and (stops_early := self.trainer._stops_early):
            known = state.stateful_callbacks[type(stops_early).__name__]
            stops_early.early_stopping_patience_counter = known["attributes"]["early_stopping_patience_counter"]
        self.first_step = state.global_step

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        # Accelerate does not reach the sampler of a run that is resumed within an epoch by several processes.
        if hasattr(self.trainer, "train_sampler"):
            self.trainer.train_sampler.set_epoch(int(state.epoch))

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.trainer.last_rate = self.trainer.optimizer.param_groups[0]["lr"]  # before the schedule goes on

    def on_step_end(self, args, state, control, **kwargs) -> None:
        ends_epoch = math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)
        control.should_save |= self.trainer.stop_request.number is not None
        # A checkpoint of an epoch's last update waits until the epoch is averaged and evaluated.
        waits = ends_epoch or state.global_step >= state.max_steps
        self.saves_at_end = waits and control.should_save
        if waits or control.should_log or control.should_evaluate:  # saving looks for itself
            self.trainer.check_loss()
        self.trainer.average_weights(ends_epoch)
        if waits:
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        control.should_save |= self.saves_at_end
        if state.global_step == self.first_step:  # resumed at the end of the run, where all is done
            control.should_save = control.should_evaluate = control.should_log = False

    def on_save(self, args, state, control, **kwargs) -> None:
        if (number := self.trainer.stop_request.number) is not None:
            checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            raise Stopped(number, f" after update {state.global_step}: {checkpoint} is saved. {GOES_ON}.")
