"""A run without its work: what it would do, whether it can, and how long it would take."""

import logging
import math
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice, pairwise
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from modeling_ast.training.arguments import ASTTrainingArguments
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.combinations import changes_batches
from modeling_ast.training.faults import Stopped
from modeling_ast.training.rows import TrainingRows
from modeling_ast.training.trainer import ASTTrainer

logger = logging.getLogger(__name__)

# Updates that are not counted (allocations, workers that start), and updates and seconds that are measured: the
# seconds show a pipeline of data that is slower than the model, once what it made in advance is used up.
WARM_UP_UPDATES, MEASURED_UPDATES, MEASURED_SECONDS, MAX_UPDATES = 3, 7, 10.0, 200
NOTHING_WRITTEN = "This was a dry run: nothing was written."
SLOW_DATA = 0.1  # share of an update's time, from which on waiting for data is worth a word
EVAL_BATCHES = 8  # of each process, beyond those of an evaluation that shows what starting one costs


@contextmanager
def nothing_written(training_args: ASTTrainingArguments) -> Iterator[None]:
    """Arguments with which a trainer writes into a folder that goes, and tells nobody; nothing is pushed."""
    with TemporaryDirectory() as folder:
        training_args.output_dir, training_args.report_to, training_args.push_to_hub = folder, [], False
        training_args.disable_tqdm = True
        try:
            yield
        except KeyboardInterrupt as stop:
            raise Stopped(getattr(stop, "number", signal.SIGINT), f". {NOTHING_WRITTEN}") from stop


def dry_run(trainer: ASTTrainer, held_out: dict[str, Dataset]) -> dict[str, float]:
    """Take a few updates and evaluate a few batches, as the run would, and tell what the whole of it takes.

    Args:
        trainer: Of the run, made within `nothing_written`.
        held_out: Decoded rows to evaluate, by the name of their split; the trainer's own among them, if there are any.

    Returns:
        `dry_run_updates` and `dry_run_evaluations` of the whole run, `dry_run_seconds_per_update`,
        `dry_run_data_share` (of an update's time, waiting for data; in [0, 1]), seconds of a clip that is no stream's
        (of one worker `dry_run_decode_seconds` and `dry_run_features_seconds`, then `dry_run_transfer_seconds`,
        `dry_run_device_features_seconds` and `dry_run_step_seconds`), `dry_run_clips_per_second` of an evaluation, and
        `dry_run_hours` of it all.

    Raises:
        AudioError, DivergedError: As in the run.
    """
    trainer.remove_callback(PrinterCallback)  # it would print each step's figures among these lines
    results, seconds, evaluations = {}, 0.0, 0
    if trainer.args.do_train:
        watch = _Stopwatch(trainer)
        trainer.add_callback(watch)
        trainer.train()
        trainer.remove_callback(watch)
        updates = trainer.state.max_steps
        evaluations = _evaluations(trainer)
        seconds = updates * watch.seconds_per_update
        results |= {
            "dry_run_updates": updates,
            "dry_run_seconds_per_update": watch.seconds_per_update,
            "dry_run_data_share": watch.data_share,
        }
        logger.info(
            f"{watch.measured} update(s) of {trainer.global_batch_size} clips took {watch.seconds_per_update:.3g} s "
            f"each, {watch.data_share:.0%} of it waiting for data."
        )
        results |= _tell_of_data(trainer, watch)
        logger.info(f"The whole run is {updates} updates: about {_shown(seconds)}.")
    if held_out:
        rate = _evaluation_rate(trainer, trainer.eval_dataset)
        models = 2 if trainer.args.averages_weights else 1  # the averaged one is evaluated too
        clips = evaluations * len(trainer.eval_dataset) + models * sum(map(len, held_out.values()))
        seconds += clips / rate
        results |= {"dry_run_evaluations": evaluations, "dry_run_clips_per_second": rate}
        logger.info(
            f"{evaluations} evaluation(s) while it trains and those at its end, of {clips} clips in all at {rate:.3g} "
            f"clips/s: {_shown(clips / rate)} at most, of clips that are decoded each time. Together about "
            f"{_shown(seconds)}."
        )
    if torch.cuda.is_available():
        logger.info(f"The GPU's memory was used up to {torch.cuda.max_memory_allocated() / 1e9:.1f} GB.")
    logger.info(NOTHING_WRITTEN)
    return {**results, "dry_run_hours": seconds / 3600}


def _tell_of_data(trainer: ASTTrainer, watch: "_Stopwatch") -> dict[str, float]:
    """What a clip takes at each stage, which is the slowest, and what to change where that is not the model."""
    if not isinstance(trainer.train_dataset, TrainingRows):
        return {}
    args = trainer.args
    collator = getattr(trainer.train_collator, "collator", trainer.train_collator)  # of what teachers said too
    clips = trainer.global_batch_size / args.world_size  # of an update, that this process trains on
    decoding, rest, batch = _time_worker(trainer, collator)
    transfer, on_device = _time_device(trainer, batch)
    step = max(watch.seconds_per_update * (1 - watch.data_share) / clips - on_device, 1e-9)
    what, workers = "what it hands over" if collator.hands_over else "its features", args.dataloader_num_workers
    told = [f"a data worker {_in_ms(decoding)} to read and decode and {_in_ms(rest)} for {what}"]
    told += [f"{_in_ms(transfer)} to get to the device"] if args.device.type != "cpu" else []
    told += [f"{_in_ms(on_device)} for its features there"] if collator.hands_over else []
    logger.info(f"A clip takes {', '.join(told)}; and the model {_in_ms(step)}.")
    of_worker = {"reading and decoding": decoding, what: rest}
    of_device = {"the way to the device": transfer, "features on the device": on_device, "the model": step}
    is_worker = sum(of_worker.values()) / max(1, workers) > sum(of_device.values())  # workers go on meanwhile
    slowest = max(stages := of_worker if is_worker else of_device, key=stages.get)
    logger.info(f"The slowest of them, with {workers} worker(s), is {slowest}.")
    # What loads data also takes a batch to the device, and waits until it is there.
    is_async = args.accelerator_config.non_blocking
    waited = watch.data_share - (0 if is_async else transfer * clips / watch.seconds_per_update)
    if waited > SLOW_DATA:
        needed = max(1, math.ceil((decoding + rest) / (transfer + on_device + step)))
        if needed <= workers:
            changes = [f"{workers} workers of a process should do: too few cores, or a slow disk, keep them back"]
        else:
            changes = [f"a process needs dataloader_num_workers: {needed}, with as many cores"]
        if collator.augment.mixup_probability and collator.augment.mixup_partner != "batch":
            changes.append("mixup_partner: batch reads no second clip")
        if decoding > rest:
            changes.append("clips that `modeling-ast pack --format flac` or `wav` writes are decoded sooner")
        elif not (collator.hands_over or args.device.type == "cpu" or changes_batches(args)):
            changes.append("features_on_device: true leaves the features to the GPU")
        elif collator.augment.max_noise:
            changes.append("max_noise: 0 draws no noise, a number for each value of the features")
        logger.info(f"Data are the bottleneck. {'; '.join(changes)}.")
    elif transfer > SLOW_DATA * step:
        changes = [] if is_async else ['accelerator_config: {"non_blocking": true} lets the processor go on meanwhile']
        changes += [] if args.dataloader_pin_memory else ["dataloader_pin_memory: true makes it shorter"]
        changes += ["max_noise: 0 takes no noise along"] if collator.augment.max_noise and collator.hands_over else []
        if changes:
            logger.info(f"The way to the device keeps it waiting. {'; '.join(changes)}.")
    seconds = {"decode": decoding, "features": rest, "transfer": transfer, "device_features": on_device, "step": step}
    return {f"dry_run_{name}_seconds": each for name, each in seconds.items()}


def _time_worker(trainer: ASTTrainer, collator: AugmentingCollator) -> tuple[float, float, dict[str, Any]]:
    """Seconds of a clip until it is decoded, and from there until it is handed over, as workers go, by one thread; and
    what is handed over.
    """
    sampler, size = trainer.make_sampler(), trainer.args.train_batch_size
    last = min(len(sampler) // size - 1, MAX_UPDATES + 1)  # of which no file has just been read, in a long epoch
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in (0, max(0, last)):  # the first one prepares what is kept, such as filters
            pairs = list(islice(iter(sampler), number * size, (number + 1) * size))
            times = [time.perf_counter()]
            rows = trainer.train_dataset.__getitems__(pairs)
            times.append(time.perf_counter())
            batch, _ = collator.collate(collator.augmented_waveforms(rows), rows)
            times.append(time.perf_counter())
    finally:
        torch.set_num_threads(num_threads)
    decoding, rest = ((end - start) / len(rows) for start, end in pairwise(times))
    return decoding, rest, batch


def _time_device(trainer: ASTTrainer, batch: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a clip on its way to the device, and for the features that are computed there."""
    args, clips = trainer.args, trainer.args.train_batch_size
    if args.dataloader_pin_memory and args.device.type == "cuda":
        batch = {name: each.pin_memory() if torch.is_tensor(each) else each for name, each in batch.items()}
    times = []
    for _ in range(4):  # the first one allocates
        marks = [_now()]
        there = send_to_device(batch, args.device)
        marks.append(_now())
        if "waveforms" in there:
            trainer.train_features.compute_handed_over(there)
        marks.append(_now())
        times.append([end - start for start, end in pairwise(marks)])
    transfer, features = (statistics.median(each) / clips for each in zip(*times[1:]))
    return (0.0 if args.device.type == "cpu" else transfer), (features if "waveforms" in there else 0.0)


def _now() -> float:
    if torch.cuda.is_available():  # a GPU works on behind the call
        torch.cuda.synchronize()
    return time.perf_counter()


def _in_ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


class _Stopwatch(TrainerCallback):
    """Times updates, from the end of one to the end of the next, and ends the training when it knows enough."""

    def __init__(self, trainer: ASTTrainer):
        self.trainer = trainer
        self.updates, self.passed, self.started, self.ended, self.waited = 0, 0, 0.0, 0.0, 0.0

    @property
    def measured(self) -> int:
        return self.updates - self.passed

    @property
    def seconds_per_update(self) -> float:
        return (self.ended - self.started) / self.measured

    @property
    def data_share(self) -> float:
        return min(1.0, self.waited / max(self.ended - self.started, 1e-9))

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = self.ended = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.waited += time.perf_counter() - self.ended

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ended = _now()
        self.updates += 1
        if (number := self.trainer.stop_request.agreed(self.trainer.accelerator)) is not None:
            raise Stopped(number)
        if self.updates == WARM_UP_UPDATES and state.max_steps > WARM_UP_UPDATES:
            self.passed, self.started, self.waited = self.updates, self.ended, 0.0
        is_long = self.ended - self.started >= MEASURED_SECONDS or self.updates >= MAX_UPDATES
        is_enough = self.updates >= WARM_UP_UPDATES + MEASURED_UPDATES and is_long
        # All processes have to stop at the same update.
        control.should_training_stop |= (
            self.trainer.accelerator.gather(torch.tensor([is_enough], device=args.device)).any().item()
        )
        self._only_steps(control)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self._only_steps(control)

    def _only_steps(self, control) -> None:
        control.should_save = control.should_evaluate = control.should_log = False


def _evaluations(trainer: ASTTrainer) -> int:
    """While a run trains."""
    args, updates = trainer.args, trainer.state.max_steps
    if args.eval_strategy == "steps":
        return updates // trainer.state.eval_steps
    if args.eval_strategy != "epoch":
        return 0
    # A stream does not tell how long an epoch is.
    epoch = len(trainer.train_sampler) // trainer.global_batch_size if hasattr(trainer, "train_sampler") else updates
    return math.ceil(updates / epoch)


def _evaluation_rate(trainer: ASTTrainer, rows: Dataset) -> float:
    """Clips a second, of all processes."""
    at_once = trainer.args.eval_batch_size * trainer.args.world_size
    few, many = _spread(rows, at_once), _spread(rows, (1 + EVAL_BATCHES) * at_once)
    metrics_logger = logging.getLogger("modeling_ast.data.metrics")
    level = metrics_logger.level
    metrics_logger.setLevel(logging.ERROR)  # a few clips are not of all classes, of which it would warn
    try:
        trainer.evaluate(few)  # allocates
        times = [time.perf_counter()]
        for each in (few, many):
            trainer.evaluate(each)
            times.append(time.perf_counter())
    finally:
        metrics_logger.setLevel(level)
    cost, whole = times[1] - times[0], times[2] - times[1]  # the former mostly of starting workers
    if len(many) > len(few) and whole > cost:
        return (len(many) - len(few)) / (whole - cost)
    return len(many) / whole


def _spread(rows: Dataset, number: int) -> Dataset:
    """So many rows at most, evenly spaced: of all classes and lengths, where rows are sorted by them."""
    return rows.select(range(0, len(rows), math.ceil(len(rows) / number)))


def _shown(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 1 else f"{seconds:.2g} s"
