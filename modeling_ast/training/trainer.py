"""Transformers' `Trainer`, with the original's sampling, optimiser, schedule, record and weight averaging."""

import json
import logging
import math
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_ast.data.files import (
    UNFINISHED_FOLDER,
    files_written_beside,
    finish_folder,
    folder_written_beside,
    remove_folder,
    unfinished_folder,
    written_beside,
)
from modeling_ast.data.metrics import DivergedError, to_probabilities
from modeling_ast.data.recipes import RecipeError
from modeling_ast.modeling_ast import classification_loss
from modeling_ast.training.augment import smooth_labels
from modeling_ast.training.averaging import RunningAverage
from modeling_ast.training.faults import GOES_ON, Stopped, StopRequest, loading, saving
from modeling_ast.training.output_dir import AVERAGE_FOLDER, checkpoint_step, last_whole_checkpoint
from modeling_ast.training.results import RESULTS_NAME, EpochRecord
from modeling_ast.training.sampling import TrainingSampler
from modeling_ast.training.schedule import step_schedule

logger = logging.getLogger(__name__)

_AVERAGE_NAME, _LOSS_NAME = "weight_average.safetensors", "epoch_loss.pt"
_RESULTS_NAME, _ALL_RESULTS_NAME = "{}_results.json", "all_results.json"


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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Label smoothing is not compatible")  # it is here, with all labels
            super().__init__(*args, **kwargs)
        self.label_smoother = None  # which takes class indices alone
        self.train_collator = train_collator
        self.sampling_weights = sampling_weights
        self.clip_seconds = clip_seconds
        self.record = record
        self.average = RunningAverage()
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

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / UNFINISHED_FOLDER) if self._is_saving_checkpoint else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Save under another name and rename: a checkpoint that is there is whole, and its numbers are finite."""
        self.check_loss()
        self._check_weights()
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # Each process goes on with its own sums: with their mean it would round in another way.
        losses = {"loss_sum": self._gather(self.loss_sum), "num_losses": self.num_losses, "last_rate": self.last_rate}
        losses |= {"total_loss": self._gather(self.total_loss), "total_losses": self.total_losses}
        losses |= {"global_batch_size": self.global_batch_size}
        try:
            with saving(checkpoint):
                self._write_checkpoint(model, trial, checkpoint, losses)
        except BaseException:
            shutil.rmtree(
                unfinished_folder(checkpoint).parent, ignore_errors=True
            )  # which a full disk has no room for
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            self._remove_old_checkpoints(checkpoint.parent, self.args.save_total_limit)

    def _write_checkpoint(self, model, trial, checkpoint: Path, losses: dict[str, Any]) -> None:
        unfinished = unfinished_folder(checkpoint)
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            torch.save(losses, unfinished / _LOSS_NAME)
            if self.record is not None:
                self.record.save_state(unfinished)
            if self.average.count:
                self.average.save(unfinished / _AVERAGE_NAME)
        self._is_saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving_checkpoint = False
        if self.state.best_global_step:  # by the name that it will have
            best = checkpoint.parent / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == checkpoint or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(unfinished / TRAINER_STATE_NAME)
        self.accelerator.wait_for_everyone()  # each process has its own random state in it
        if self.args.should_save:
            finish_folder(checkpoint)
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving_checkpoint:  # it is uploaded while the run goes on, under its own name
            super()._push_from_checkpoint(checkpoint_folder)

    def _remove_old_checkpoints(self, run_dir: Path, limit: int | None) -> None:
        """All but the newest and the best; the Trainer's own way leaves half of one where it is killed."""
        checkpoints = [path for path in run_dir.glob("*") if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name)]
        checkpoints.sort(key=checkpoint_step)
        kept = {path.name for path in checkpoints[-1:]}
        if self.state.best_model_checkpoint is not None:
            kept.add(Path(self.state.best_model_checkpoint).name)
        removable = [path for path in checkpoints if path.name not in kept]
        too_many = len(checkpoints) - max(limit, len(kept)) if limit else 0
        for path in removable[: max(0, too_many)]:
            remove_folder(path)

    def _finalize_training(self, *args, **kwargs):
        # With save_total_limit 1 the Trainer removes all but the best checkpoint here, while the trained model is in
        # memory alone: `save_end` does it.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self._is_saving_checkpoint or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with saving(folder), files_written_beside(folder) as unfinished:
            super()._save(str(unfinished), state_dict)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """As the Trainer's own: into `{split}_results.json`, and into `all_results.json` together with the others."""
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        _write_json(folder / _RESULTS_NAME.format(split), metrics)
        if combined:
            path = folder / _ALL_RESULTS_NAME
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            _write_json(path, before | metrics)

    def save_state(self) -> None:
        """As the Trainer's own: the history of the run into its folder."""
        if self.is_world_process_zero():
            with written_beside(Path(self.args.output_dir) / TRAINER_STATE_NAME, durable=True) as unfinished:
                self.state.save_to_json(unfinished)

    def save_end(self, metrics: dict[str, float]) -> None:
        """Save what the training ended with; its history last, which tells `load_end` that all is there.

        Raises:
            SaveError: It cannot be written.
            Stopped: A signal had come before the end of the training.
        """
        folder = Path(self.args.output_dir)
        if self.average.count:
            with saving(folder / AVERAGE_FOLDER), folder_written_beside(folder / AVERAGE_FOLDER) as unfinished:
                self.average.to_model(self.model.config).save_pretrained(unfinished)
                self.processing_class.save_pretrained(unfinished)
        elif self.is_world_process_zero() and self.args.weight_average_start is not None:
            logger.warning("The run ended before the first epoch whose weights were to be averaged.")
        self.save_model()
        with saving(folder):
            self.save_metrics("train", metrics)
            self.save_state()
            if self.args.should_save and self.args.save_total_limit == 1 and self.state.best_model_checkpoint:
                best = Path(self.state.best_model_checkpoint).name
                for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                    if path.name != best:
                        remove_folder(path)
        self.accelerator.wait_for_everyone()
        if (number := self.stop_request.number) is not None:
            raise Stopped(number, f" after the last update: {folder} holds the trained model. {GOES_ON}.")

    def load_end(self) -> dict[str, float] | None:
        """Take up what `save_end` saved.

        Returns:
            The metrics of the training, or `None` where it has not ended, saved no whole model (FSDP's shards), or
            where a file of it is damaged.
        """
        folder = Path(self.args.output_dir)
        if not all((folder / name).is_file() for name in (TRAINER_STATE_NAME, SAFE_WEIGHTS_NAME)):
            return None
        try:
            with loading(folder, is_of_this_run=True):
                state = TrainerState.load_from_json(folder / TRAINER_STATE_NAME)
                metrics = json.loads((folder / _RESULTS_NAME.format("train")).read_text(encoding="utf-8"))
                self.model.load_state_dict(load_file(folder / SAFE_WEIGHTS_NAME))
        except RecipeError as error:
            logger.warning(f"What the training ended with cannot be read, and its last part is done again: {error}")
            return None
        self.state = state
        return metrics

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As the Trainer's own, which SIGTERM and Ctrl-C end after the update that they meet, with a checkpoint.

        Raises:
            DivergedError: The loss or the weights are no longer finite.
            SaveError: A checkpoint cannot be written.
            Stopped: By a signal.
        """
        self._stops_early = None
        if self.args.early_stopping_patience is not None:  # not in the evaluations after training
            self._stops_early = EarlyStoppingCallback(
                self.args.early_stopping_patience, self.args.early_stopping_threshold
            )
            self.add_callback(self._stops_early)
        try:
            return self._train(resume_from_checkpoint, **kwargs)
        finally:
            if self._stops_early is not None:
                self.remove_callback(self._stops_early)

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            with self._loading(resume_from_checkpoint):
                TrainerState.load_from_json(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)
                self._load_progress(Path(resume_from_checkpoint))
            self._check_optimizer(Path(resume_from_checkpoint))
        self._resumed_from = resume_from_checkpoint or None
        if self.args.should_save:  # what `load_end` goes by
            (Path(self.args.output_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)
        # Several processes would each stop after another update: there a signal ends the run at once.
        if self.args.world_size > 1:
            output = super().train(resume_from_checkpoint, **kwargs)
        else:
            output = self._train_until_stopped(resume_from_checkpoint, **kwargs)
        self.check_loss()
        # The Trainer's own forgets what came before the checkpoint of a resumed run.
        output.metrics["train_loss"] = self._mean(self.total_loss) / max(self.total_losses, 1)
        return output

    def _run_epoch(self, **kwargs) -> None:
        # Resumed where it had stopped early, before the trained model was saved: nothing is left to train.
        if (
            self._stops_early
            and self._stops_early.early_stopping_patience_counter >= self.args.early_stopping_patience
        ):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _train_until_stopped(self, resume_from_checkpoint: str | None, **kwargs):
        with self.stop_request as request:
            try:
                return super().train(resume_from_checkpoint, **kwargs)
            except RuntimeError as error:
                if request.number is None:
                    raise
                # The signal reached the workers too, and the Trainer missed them before the update was done.
                raise Stopped(request.number) from error

    def _load_progress(self, checkpoint: Path) -> None:
        if (checkpoint / _LOSS_NAME).is_file():
            losses = torch.load(checkpoint / _LOSS_NAME, weights_only=True)
            if (before := losses.get("global_batch_size", self.global_batch_size)) != self.global_batch_size:
                raise RecipeError(
                    f"Expected updates of {before} clips, as in {checkpoint}, got {self.global_batch_size}: the "
                    "number of processes, accumulation steps or clips on each has changed. Set global_batch_size."
                )
            self.loss_sum, self.num_losses = self._own(losses["loss_sum"]), losses["num_losses"]
            self.last_rate = losses["last_rate"]
            self.total_loss, self.total_losses = self._own(losses["total_loss"]), losses["total_losses"]
        else:
            logger.warning(f"{checkpoint} was not saved by this trainer: {RESULTS_NAME} and averages start anew.")
        if self.is_world_process_zero():
            if self.record is not None:
                self.record.load_state(checkpoint)
            if (checkpoint / _AVERAGE_NAME).is_file():
                self.average.load(checkpoint / _AVERAGE_NAME)

    @staticmethod
    def _check_optimizer(checkpoint: Path) -> None:
        """Without its state, Transformers' own begins with a new one, and says nothing."""
        if not [*checkpoint.glob("optimizer*"), *checkpoint.glob("global_step*")]:  # the latter DeepSpeed's
            raise RecipeError(
                f"{checkpoint} cannot be continued from: it holds no state of the optimiser, as one that "
                "save_only_model true has saved. Start a new run from it by model_name_or_path."
            )

    def _loading(self, checkpoint: str | Path | None):
        is_of_this_run = Path(checkpoint or "").absolute().parent == Path(self.args.output_dir).absolute()
        return loading(checkpoint, is_of_this_run)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        with self._loading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        with self._loading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint) -> None:
        with self._loading(checkpoint):
            super()._load_rng_state(checkpoint)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        if self.state.global_step >= self.state.max_steps:  # resumed at its end, which is within an epoch
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

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


def _write_json(path: Path, values: dict[str, float]) -> None:
    with written_beside(path, durable=True) as unfinished:
        unfinished.write_text(json.dumps(values, indent=4, sort_keys=True), encoding="utf-8")


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
        if ends_epoch:
            self.trainer.finish_epoch()
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
