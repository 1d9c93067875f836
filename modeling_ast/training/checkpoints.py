"""Checkpoints that are whole, and resuming from them, exactly as if the run had not been interrupted.

In the order of a run: `train` reads what a checkpoint holds beyond the Trainer's own (`_load_progress`); after an
update that asks for a checkpoint `_save_checkpoint` has the Trainer write one into a folder beside, adds losses,
record and average (`_write_checkpoint`), and renames it; a signal to any process is noted, and ends all of them after
the next one (`_CheckpointCallback`); after the last update `save_end` writes the trained model, and where a run is
started again after that, `load_end` reads it in place of training.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
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
from modeling_ast.data.metrics import DivergedError
from modeling_ast.data.processes import decided_by_main, raise_in_all, together
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.averaging import RunningAverage
from modeling_ast.training.faults import GOES_ON, Stopped, StopRequest, loading, saving
from modeling_ast.training.losses import TrainingLosses
from modeling_ast.training.output_dir import AVERAGE_FOLDER, last_whole_checkpoint, remove_old_checkpoints
from modeling_ast.training.results import RESULTS_NAME, RunRecord
from modeling_ast.training.rows import TrainingStream
from modeling_ast.training.same_run import compare_with_beginning, describe_training_clips
from modeling_ast.training.sharding import check_optimizer, check_strategy, check_whole_files, save_whole_models

logger = logging.getLogger(__name__)

_AVERAGE_NAME, _PROGRESS_NAME = "weight_average.safetensors", "epoch_loss.pt"
_METRICS_NAME, _ALL_METRICS_NAME = "{}_results.json", "all_results.json"


class ResumableTrainer(Trainer):
    """`Trainer`, whose checkpoints are whole, and which goes on from them with all that it knew.

    Args:
        record: Where each evaluation during training is written down.
    """

    def __init__(self, *args, record: RunRecord | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.record = record
        self.losses, self.last_rate = TrainingLosses(self.accelerator), 0.0
        decay = self.args.ema_decay
        # An average of every update stays where the weights are: to copy them each time would take long. Weights that
        # are nowhere whole have theirs in the memory of the main process.
        stays = decay is not None and not self.is_sharded
        self.average = RunningAverage(decay, self.args.device if stays else "cpu")
        self.stop_request = StopRequest()
        self._is_saving_checkpoint, self._resumed_from = False, None
        self._stops_early = None  # the callback that ends a training without progress
        self.add_callback(_CheckpointCallback(self))

    @property
    def is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @cached_property
    def clips(self) -> dict[str, str]:
        """Which they are, as a checkpoint tells it."""
        return describe_training_clips(self)

    @property
    def trained_model(self) -> PreTrainedModel:
        """What the run is for, which is saved at its end."""
        return self.model

    def averaged_model(self) -> PreTrainedModel:
        """One of its kind whose weights are the average."""
        return self.average.to_model(self.model.config)

    def load_trained(self, path: Path) -> None:
        """Take the weights that training ended with."""
        self.trained_model.load_state_dict(load_file(path))

    @property
    def global_batch_size(self) -> int:
        return self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def _get_output_dir(self, trial) -> str:
        """A checkpoint is written beside its place, into which it comes when it is whole."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / UNFINISHED_FOLDER) if self._is_saving_checkpoint else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Save under another name and rename: a checkpoint that is there is whole, and its numbers are finite."""
        self.check_loss()
        self._check_weights()
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        progress = self._progress()
        try:
            with saving(checkpoint):
                self._write_checkpoint(model, trial, checkpoint, progress)
        except BaseException:
            # A full disk has no room for it.
            shutil.rmtree(unfinished_folder(checkpoint).parent, ignore_errors=True)
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            remove_old_checkpoints(checkpoint.parent, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beyond the Trainer's own, in one file."""
        progress = {"last_rate": self.last_rate, "global_batch_size": self.global_batch_size, "clips": self.clips}
        progress |= self.losses.state()
        if isinstance(self.train_dataset, TrainingStream):
            progress["stream"] = self.train_dataset.state()
        return progress

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        """Go on with what `_progress` gave.

        Raises:
            RecipeError: The run began with other clips.
        """
        compare_with_beginning(self.clips, progress.get("clips", {}))
        self.losses.load_state(progress)
        self.last_rate = progress["last_rate"]
        if isinstance(self.train_dataset, TrainingStream):
            self.train_dataset.load_state(progress.get("stream", {}))

    def _write_checkpoint(self, model, trial, checkpoint: Path, progress: dict[str, Any]) -> None:
        unfinished = unfinished_folder(checkpoint)
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            torch.save(progress, unfinished / _PROGRESS_NAME)
            if self.record is not None:
                self.record.save_state(unfinished)
            if self.average.count:
                self.average.save(unfinished / _AVERAGE_NAME)
            if self.is_sharded:  # what the weights need that are made whole of shards, where the Trainer leaves it out
                self.model.config.save_pretrained(unfinished)
                self.processing_class.save_pretrained(unfinished)
        self._is_saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving_checkpoint = False
        if self.state.best_global_step:  # by the name that it will have
            best = checkpoint.parent / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == checkpoint or decided_by_main(best.is_dir):
                self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(unfinished / TRAINER_STATE_NAME)
        self.accelerator.wait_for_everyone()  # each process has its own random state in it
        if self.args.should_save:
            finish_folder(checkpoint)
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """A checkpoint is uploaded while the run goes on, under its own name, which it has when it is whole."""
        if not self._is_saving_checkpoint:
            super()._push_from_checkpoint(checkpoint_folder)

    def _finalize_training(self, *args, **kwargs):
        """With save_total_limit 1 the Trainer removes all but the best checkpoint here, while the trained model is in
        memory alone: `save_end` does it."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The files of a model replace those of an earlier one when they are whole."""
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
        _write_json(folder / _METRICS_NAME.format(split), metrics)
        if combined:
            path = folder / _ALL_METRICS_NAME
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            _write_json(path, before | metrics)

    def save_state(self) -> None:
        """As the Trainer's own, the history of the run into its folder, where it comes when it is whole."""
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
            self.average.warn_if_short()
            with saving(folder / AVERAGE_FOLDER), folder_written_beside(folder / AVERAGE_FOLDER) as unfinished:
                self.averaged_model().save_pretrained(unfinished)
                self.processing_class.save_pretrained(unfinished)
        elif self.is_world_process_zero() and self.args.weight_average_start is not None:
            logger.warning("The run ended before the first weights that were to be averaged.")
        save_whole_models(self.accelerator)
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
        if (number := self.stop_request.agreed(self.accelerator)) is not None:
            raise_in_all(Stopped(number, f" after the last update: {folder} holds the trained model. {GOES_ON}"))

    def load_end(self) -> dict[str, float] | None:
        """Take up what `save_end` saved.

        Returns:
            The metrics of the training, or `None` where it has not ended, or where a file of it is damaged, for the
            main process.

        Raises:
            RecipeError: Another process cannot read what the main process has read.
        """
        metrics = decided_by_main(self._read_end)
        with together():
            if metrics is not None and not self.is_world_process_zero() and self._read_end() is None:
                raise RecipeError(f"{self.args.output_dir} holds the trained model, which this process cannot read.")
        return metrics

    def _read_end(self) -> dict[str, float] | None:
        folder = Path(self.args.output_dir)
        if not all((folder / name).is_file() for name in (TRAINER_STATE_NAME, SAFE_WEIGHTS_NAME)):
            return None
        try:
            with loading(folder, is_of_this_run=True):
                state = TrainerState.load_from_json(folder / TRAINER_STATE_NAME)
                metrics = json.loads((folder / _METRICS_NAME.format("train")).read_text(encoding="utf-8"))
                self.load_trained(folder / SAFE_WEIGHTS_NAME)
        except RecipeError as error:
            logger.warning(f"What the training ended with cannot be read, and its last part is done again: {error}")
            return None
        self.state = state
        return metrics

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
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

    def _train(self, resume_from_checkpoint: str | None, **kwargs):
        if resume_from_checkpoint:
            with together(), self._loading(resume_from_checkpoint):
                state = TrainerState.load_from_json(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)
                if self.args.auto_find_batch_size:  # the one that it has found
                    self._train_batch_size = state.train_batch_size
                check_strategy(Path(resume_from_checkpoint), self.accelerator)
                check_whole_files(Path(resume_from_checkpoint), self.accelerator, self.model)
                self._load_progress(Path(resume_from_checkpoint))
                check_optimizer(Path(resume_from_checkpoint))
        self._resumed_from = resume_from_checkpoint or None
        if self.args.should_save:  # what `load_end` goes by
            (Path(self.args.output_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)
        output = self._train_until_stopped(resume_from_checkpoint, **kwargs)
        self.check_loss()
        # The Trainer's own forgets what came before the checkpoint of a resumed run.
        output.metrics["train_loss"] = self.losses.mean()
        return output

    def _run_epoch(self, **kwargs) -> None:
        """Nothing, where a run is resumed after its last update, before the trained model was saved.

        That update may be within an epoch (`max_steps`), or one after which the run stopped early.
        """
        stops_early, patience = self._stops_early, self.args.early_stopping_patience
        has_stopped = stops_early is not None and stops_early.early_stopping_patience_counter >= patience
        if has_stopped or self.state.global_step >= self.state.max_steps:
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
        if (checkpoint / _PROGRESS_NAME).is_file():
            progress = torch.load(checkpoint / _PROGRESS_NAME, weights_only=True)
            if (before := progress.get("global_batch_size", self.global_batch_size)) != self.global_batch_size:
                raise RecipeError(
                    f"Expected updates of {before} clips, as in {checkpoint}, got {self.global_batch_size}: the "
                    "number of processes, accumulation steps or clips on each has changed. Set global_batch_size."
                )
            self._restore_progress(progress)
        else:
            logger.warning(f"{checkpoint} was not saved by this trainer: {RESULTS_NAME} and averages start anew.")
        if self.is_world_process_zero():
            if self.record is not None:
                self.record.load_state(checkpoint)
            if (checkpoint / _AVERAGE_NAME).is_file():
                self.average.load(checkpoint / _AVERAGE_NAME)

    @contextmanager
    def _loading(self, checkpoint: str | Path | None) -> Iterator[None]:
        is_of_this_run = Path(checkpoint or "").absolute().parent == Path(self.args.output_dir).absolute()
        # While they load shards the processes wait for one another, and none could be told of another one's error.
        with nullcontext() if self.is_sharded else together(), loading(checkpoint, is_of_this_run):
            yield

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Weights that cannot be read: told in one sentence, with what to do."""
        with self._loading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        """The optimiser's state that cannot be read: told in one sentence, with what to do."""
        with self._loading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint) -> None:
        """The random state that cannot be read: told in one sentence, with what to do."""
        with self._loading(checkpoint):
            super()._load_rng_state(checkpoint)

    # A run that diverged stops, and leaves the checkpoints from before.

    def check_loss(self) -> None:
        """Look at the losses since the beginning; all processes have to call it together.

        Raises:
            DivergedError: One of them was not finite.
        """
        if (update := self.losses.first_not_finite()) is not None:
            self._raise_diverged(f"The loss of update {update}")

    def _check_weights(self) -> None:
        parameters = [getattr(each, "to_local", lambda each=each: each)() for each in self.model.parameters()]
        is_bad = ~torch.stack([each.isfinite().all() for each in parameters]).all()
        if self.accelerator.gather(is_bad.to(self.args.device).reshape(1)).any():
            self._raise_diverged(f"A weight after update {self.state.global_step}")

    def _raise_diverged(self, what: str) -> None:
        checkpoint = last_whole_checkpoint(self.args.output_dir)
        kept = f"{checkpoint} is from before" if checkpoint else "No checkpoint was saved before"
        raise_in_all(
            DivergedError(
                f"{what} is no finite number: did the training diverge? Try a lower learning_rate, more warmup_steps, "
                f"max_grad_norm 1, or bf16 in place of fp16, in another output_dir. {kept}."
            )
        )


def ends_epoch(state: TrainerState) -> bool:
    """Whether an update was the last one of its epoch."""
    return math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)


class _CheckpointCallback(TrainerCallback):
    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer
        self.saves_at_end = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        resumed_from = self.trainer._resumed_from
        if resumed_from and state.best_global_step:  # also where the folder of the run has moved
            best = Path(resumed_from).parent / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            if decided_by_main(best.is_dir):
                state.best_model_checkpoint = str(best)
        if resumed_from and (stops_early := self.trainer._stops_early):
            known = state.stateful_callbacks[type(stops_early).__name__]
            stops_early.early_stopping_patience_counter = known["attributes"]["early_stopping_patience_counter"]

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_save |= self._stopped_by() is not None
        # A checkpoint of an epoch's last update waits until the epoch is averaged and evaluated.
        waits = ends_epoch(state) or state.global_step >= state.max_steps
        self.saves_at_end = waits and control.should_save
        if waits or control.should_log or control.should_evaluate:  # saving looks for itself
            self.trainer.check_loss()
        if waits:
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        control.should_save |= self.saves_at_end

    def on_save(self, args, state, control, **kwargs) -> None:
        if (number := self._stopped_by()) is not None:
            checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            raise_in_all(Stopped(number, f" after update {state.global_step}: {checkpoint} is saved. {GOES_ON}"))

    def _stopped_by(self) -> int | None:
        """After an update, or a checkpoint, of all processes: each may have met a signal at another one."""
        return self.trainer.stop_request.agreed(self.trainer.accelerator)


def _write_json(path: Path, values: dict[str, float]) -> None:
    with written_beside(path, durable=True) as unfinished:
        unfinished.write_text(json.dumps(values, indent=4, sort_keys=True), encoding="utf-8")
