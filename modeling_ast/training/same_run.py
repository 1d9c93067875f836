"""What all processes of a run must have alike, compared before anything is written: else each trains another run."""

import dataclasses
import hashlib
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers
from datasets import Dataset, IterableDataset
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

import modeling_ast
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.locks import made_for_now
from modeling_ast.data.processes import (
    decided_by_main,
    gather_values,
    is_one_of_several,
    process_name,
    raise_in_all,
    together,
)
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.arguments import Arguments
from modeling_ast.training.output_dir import checkpoint_to_go_on_from

# Where a process may have its own: the name of a shared folder, how it reads its clips, and what it shows.
_OWN_KEYS = set(
    """
    output_dir local_rank disable_tqdm log_level log_level_replica report_to run_name
    dataloader_num_workers dataloader_prefetch_factor dataloader_persistent_workers dataloader_pin_memory
    """.split()
)
_SOUND_START = 512  # bytes, of a sound without a name
PATIENCE_SECONDS = 40.0  # NFS may remember for 30 s that a folder or a file was not there


def compare_processes(arguments: Arguments) -> None:
    """Compare recipe, versions, the folder of the run and the checkpoint to go on from, before the data are read.

    Raises:
        RecipeError: A process has another one.
    """
    if not is_one_of_several():
        return
    training_args = arguments.training
    versions = {module.__name__: module.__version__ for module in (modeling_ast, torch, transformers)}
    facts = {f"the version of {name}": version for name, version in versions.items()} | _settings(arguments)
    _compare(facts | _settings_of_launcher())
    if training_args.do_train and not training_args.dry_run:
        _check_shared(Path(training_args.output_dir))
        with together():
            checkpoint = _describe_checkpoint(checkpoint_to_go_on_from(training_args))
        _compare({"the checkpoint to go on from": checkpoint})


def compare_clips(splits: AudioSplits) -> None:
    """Compare the clips and their labels, not decoded.

    Raises:
        RecipeError: A process has others.
    """
    if not is_one_of_several():
        return
    with together():
        facts = {"the table of labels": f"{len(splits.label_names)} labels ({_digest(splits.label_names)})"}
        facts |= {f"the {name} split": describe_rows(rows) for name, rows in splits}
    _compare(facts)


def compare_models(fingerprint: Callable[[], str]) -> None:
    """Compare the models that the processes have read, by what tells them apart.

    Raises:
        RecipeError: A process has another one.
    """
    if is_one_of_several():
        _compare({"the model": fingerprint()[:12]})


def describe_training_clips(trainer: Trainer) -> dict[str, str]:
    """Those of a trainer's tables that move a run, by what they are for, as `describe_rows` describes them."""
    found = {"to train on": trainer.train_dataset}
    if trainer.args.eval_strategy != "no":
        found["to evaluate on"] = trainer.eval_dataset
    tables = {purpose: getattr(rows, "rows", rows) for purpose, rows in found.items()}
    tables = {purpose: rows for purpose, rows in tables.items() if isinstance(rows, Dataset)}
    return {purpose: describe_rows(rows) for purpose, rows in tables.items() if "audio" in rows.column_names}


def compare_with_beginning(clips: Mapping[str, str], of_beginning: Mapping[str, str]) -> None:
    """Compare what `describe_training_clips` gives with what it gave when a run began.

    Raises:
        RecipeError: They are others, of which the updates and positions of the run would be others.
    """
    for purpose, before in of_beginning.items():
        if (now := clips.get(purpose, "none")) != before:
            raise RecipeError(
                f"Expected the clips {purpose} that the run began with, {before}, got {now}. Give it those again, or "
                "begin another run, with the weights of this one as model_name_or_path."
            )


def find_difference(names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> str | None:
    """The first difference between a process and the main one.

    Args:
        names: Of the processes, the main one first.
        facts: What each of them has, by what it is called; what one lacks is nothing.

    Returns:
        A sentence that names the process, the key and both values, or `None`.
    """
    for name, own in zip(names[1:], facts[1:]):
        for key in facts[0] | own:
            of_main, of_it = (each.get(key, "nothing") for each in (facts[0], own))
            if of_main != of_it:
                return (
                    f"Expected all processes to begin the same run, but {key} is {of_main} for {names[0]} and {of_it} "
                    f"for {name}."
                )
    return None


def _compare(facts: Mapping[str, str]) -> None:
    if difference := find_difference(*zip(*gather_values((process_name(), facts)))):
        raise_in_all(RecipeError(difference))


def _check_shared(output_dir: Path) -> None:
    """Whether all processes find in the folder of the run what the main one writes there."""
    with ExitStack() as stack:
        note = decided_by_main(lambda: _leave_note(stack, output_dir))
        has_it = _finds(output_dir / note)
        found = gather_values((process_name(), str(output_dir.absolute()), has_it))  # then the note may go
    main, folder, _ = found[0]
    for name, own_folder, has_it in found:
        if not has_it:
            raise_in_all(
                RecipeError(
                    f"Expected output_dir to be a folder that all processes share, but {name} does not find in "
                    f"{own_folder} what {main} wrote into {folder}. Choose one on a disk that all machines have."
                )
            )


def _leave_note(stack: ExitStack, output_dir: Path) -> str:
    """Write a file whose name nothing else has, and its removal into the stack."""
    stack.enter_context(made_for_now(output_dir))
    note = output_dir / f".{uuid.uuid4().hex}.unfinished"  # by its name a later run removes what a killed one left
    stack.callback(note.unlink, missing_ok=True)
    note.write_text(note.name, encoding="utf-8")
    return note.name


def _finds(note: Path) -> bool:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with suppress(OSError):
            if note.read_text(encoding="utf-8") == note.name:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _settings(arguments: Arguments) -> dict[str, str]:
    """All that a recipe can say, as it was resolved, without access tokens."""
    # Data workers share out a stream, and all processes have to know how many there are.
    own_keys = _OWN_KEYS - {"dataloader_num_workers"} if arguments.data.streaming else _OWN_KEYS
    return {
        each.name: _shown(getattr(block, each.name))
        for block in arguments
        for each in dataclasses.fields(block)
        if each.init and each.name not in own_keys and not each.name.endswith("_token")
    }


def _settings_of_launcher() -> dict[str, str]:
    """How the model is shared and computed with, which no recipe says."""
    names = [name for name in os.environ if name.startswith("FSDP_")]
    names += ["ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION"]
    return {f"{name} of the launcher": os.environ.get(name, "no") for name in names}


def _shown(value: Any) -> str:
    if hasattr(value, "to_dict"):  # settings of Accelerate
        value = value.to_dict()
    return "nothing" if value is None else str(getattr(value, "value", value))


def _describe_checkpoint(checkpoint: str | None) -> str:
    if not checkpoint:
        return "none"
    state = Path(checkpoint) / TRAINER_STATE_NAME
    history = state.read_text(encoding="utf-8") if state.is_file() else ""  # a folder without it is told later
    return f"{Path(checkpoint).name} ({_digest([history])})"


def describe_rows(rows: Dataset | IterableDataset) -> str:
    """How many clips there are, with a digest of their names and labels, in their order."""
    if isinstance(rows, IterableDataset):
        return f"a stream of {rows.num_shards} shard(s)"
    rows = rows.flatten()
    names = ("audio.path", "audio.start", "audio.end", "labels")  # not the sounds, of which only some have no name
    if "audio.bytes" in rows.column_names and rows.data["audio.path"].null_count:
        names += ("audio.bytes",)
    names = [name for name in names if name in rows.column_names]
    columns = rows.select_columns(names).with_format("arrow")
    batches = (columns[start : start + 100_000] for start in range(0, len(rows), 100_000))
    return f"{len(rows)} clips ({_digest(text for batch in batches for text in _describe_batch(batch))})"


def _describe_batch(batch: pa.Table) -> Iterator[str]:
    # Only the ends of the paths: machines may have the data in different places.
    for path in batch["audio.path"].to_pylist():
        yield "/".join((path or "").rsplit("/", 2)[-2:])
    if "audio.bytes" in batch.column_names:
        sounds, has_no_name = batch["audio.bytes"], pc.is_null(batch["audio.path"])
        starts = pc.binary_slice(sounds, 0, _SOUND_START).filter(has_no_name)
        yield str(pc.binary_length(sounds).filter(has_no_name).to_pylist())
        yield from (str(zlib.crc32(start or b"")) for start in starts.to_pylist())
    yield from (str(batch[name].to_pylist()) for name in ("audio.start", "audio.end") if name in batch.column_names)
    if "labels" not in batch.column_names:
        return
    labels = batch["labels"].combine_chunks()
    if pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):
        yield str(labels.value_lengths().to_pylist())
        labels = labels.flatten()
    yield str(labels.to_pylist())


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()[:12]
