"""Transformers' `Trainer`, with the original's sampling, optimiser, schedule, record and weight averaging."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from modeling_ast.data.metrics import to_probabilities
from modeling_ast.modeling_ast import classification_loss
from modeling_ast.training.averaging import RunningAverage
from modeling_ast.training.recipes import RecipeError
from modeling_ast.training.record import RESULTS_NAME, EpochRecord
from modeling_ast.training.sampling import TrainingSampler
from modeling_ast.training.schedule import step_schedule

logger = logging.getLogger(__name__)

_AVERAGE_NAME, _LOSS_NAME = "weight_average.safetensors", "epoch_loss.pt"


class ASTTrainer(Trainer):
    """`Trainer`, whose training batches are made by a collator of their own and drawn in an order of their own.

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
        super().__init__(*args, **kwargs)
        self.train_collator = train_collator
        self.sampling_weights = sampling_weights
        self.clip_seconds = clip_seconds
        self.record = record
        self.average = RunningAverage()
        # Sums of the losses of updates and their numbers, since the last evaluation and since the beginning.
        self.loss_sum, self.num_losses, self.last_rate = torch.zeros(()), 0.0, 0.0
        self.total_loss, self.total_losses = torch.zeros(()), 0.0
        self.add_callback(_EpochCallback(self))

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the script writes a card that says more, and `push_to_hub` must not replace it."""

    # Data.

    def get_train_dataloader(self) -> DataLoader:
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
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            loss = (result[0] if return_outputs else result).detach().float().mean()
            share = 1 / self.args.gradient_accumulation_steps  # of an update
            self.loss_sum, self.num_losses = self.loss_sum + share * loss, self.num_losses + share
            self.total_loss, self.total_losses = self.total_loss + share * loss, self.total_losses + share
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

    def finish_epoch(self) -> None:
        """Take the epoch's weights into the average, if it is one of those to average."""
        args = self.args
        if args.weight_average_start is None:
            return
        end = args.num_train_epochs if args.weight_average_end is None else args.weight_average_end
        if args.weight_average_start <= round(self.state.epoch) <= end:
            is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            weights = self.accelerator.get_state_dict(self.model_wrapped) if is_sharded else self.model.state_dict()
            if self.is_world_process_zero():
                self.average.update(weights)

    # An interrupted run goes on with all of that.

    def _save_checkpoint(self, model, trial) -> None:
        # Before the Trainer's own files, whose last one tells that a checkpoint is whole.
        losses = {"loss_sum": self._mean(self.loss_sum), "num_losses": self.num_losses, "last_rate": self.last_rate}
        losses |= {"total_loss": self._mean(self.total_loss), "total_losses": self.total_losses}
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.is_world_process_zero():
            checkpoint.mkdir(parents=True, exist_ok=True)
            torch.save(losses, checkpoint / _LOSS_NAME)
            if self.record is not None:
                self.record.save_state(checkpoint)
            if self.average.count:
                self.average.save(checkpoint / _AVERAGE_NAME)
        super()._save_checkpoint(model, trial)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            if (checkpoint / _LOSS_NAME).is_file():
                losses = torch.load(checkpoint / _LOSS_NAME, weights_only=True)
                self.loss_sum, self.num_losses = torch.tensor(losses["loss_sum"]), losses["num_losses"]
                self.last_rate = losses["last_rate"]
                self.total_loss, self.total_losses = torch.tensor(losses["total_loss"]), losses["total_losses"]
            else:
                logger.warning(f"{checkpoint} was not saved by this trainer: {RESULTS_NAME} and averages start anew.")
            if self.is_world_process_zero():
                if self.record is not None:
                    self.record.load_state(checkpoint)
                if (checkpoint / _AVERAGE_NAME).is_file():
                    self.average.load(checkpoint / _AVERAGE_NAME)
        output = super().train(resume_from_checkpoint, **kwargs)
        # The Trainer's own forgets what came before the checkpoint of a resumed run.
        output.metrics["train_loss"] = self._mean(self.total_loss) / max(self.total_losses, 1)
        return output

    def _mean(self, loss_sum: torch.Tensor) -> float:
        """A sum of losses, averaged over the processes."""
        return self.accelerator.reduce(loss_sum.to(self.args.device), "mean").item()


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint of a run that was not stopped while it was being saved."""
    whole = [path.parent for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


class _EpochCallback(TrainerCallback):
    def __init__(self, trainer: ASTTrainer):
        self.trainer = trainer
        self.saves_at_end = False

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        # Accelerate does not reach the sampler of a run that is resumed within an epoch by several processes.
        if hasattr(self.trainer, "train_sampler"):
            self.trainer.train_sampler.set_epoch(int(state.epoch))

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.trainer.last_rate = self.trainer.optimizer.param_groups[0]["lr"]  # before the schedule goes on

    def on_step_end(self, args, state, control, **kwargs) -> None:
        ends_epoch = math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)
        # A checkpoint of an epoch's last update waits until the epoch is averaged and evaluated.
        self.saves_at_end = ends_epoch and control.should_save
        if ends_epoch:
            self.trainer.finish_epoch()
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        control.should_save |= self.saves_at_end
