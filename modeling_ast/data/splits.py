"""From a recipe's data arguments to splits and folds: the entry point, to train or to evaluate a trained model."""

import dataclasses
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTConfig
from modeling_ast.data.clip_tables import AudioSplits, keep_on_disk
from modeling_ast.data.labels import DataError
from modeling_ast.data.processes import gather_values, is_one_of_several, together
from modeling_ast.data.recipes import RECIPE_NAME, DataArguments, RecipeError, read_settings
from modeling_ast.data.shards import keep
from modeling_ast.data.sources import DataSource
from modeling_ast.data.streams import load_streamed_splits
from modeling_ast.loading import ModelError, is_ast


def read_splits(
    data_args: DataArguments,
    multi_label: bool,
    keep_columns: bool = False,
    teacher_labels: Sequence[str] | None = None,
) -> AudioSplits:
    """The data set, cut to some clips, drawn at random, where the arguments say so.

    Args:
        data_args: Of the data.
        multi_label: Whether a clip may have several labels.
        keep_columns: Of a table, as for `DataSource`.
        teacher_labels: As for `DataSource`.

    Raises:
        DataError: As from `DataSource` and `load_streamed_splits`.
    """
    if data_args.streaming:
        splits = load_streamed_splits(data_args, multi_label, teacher_labels)
    else:
        options = {"keep_columns": keep_columns, "teacher_labels": teacher_labels}
        source = DataSource(data_args, multi_label, data_args.max_bad_clips, **options)
        splits = source.load()
        for name, rows in splits:
            limit = data_args.max_train_samples if name == "train" else data_args.max_eval_samples
            setattr(splits, name, _some(rows, limit))
    splits.ignore_length = data_args.ignore_length
    return splits


def read_tables(data_args: DataArguments, multi_label: bool) -> AudioSplits:
    """The data set; of a stream the first clips, kept on disk, in the cache of `datasets`.

    Raises:
        RecipeError: All clips of a stream.
        DataError: As from `read_splits`.
    """
    if data_args.streaming and data_args.max_train_samples is None:
        raise RecipeError(
            "Expected max_train_samples with streaming: clips are compared with one another, so many of the stream's "
            "first, which are kept on this disk."
        )
    splits = read_splits(data_args, multi_label)
    if data_args.streaming:
        splits.train = keep(splits.train, data_args.dataset_name, splits.version)
    return splits


def read_evaluation_splits(data_args: DataArguments, multi_label: bool, model_labels: Sequence[str]) -> AudioSplits:
    """A data set that is evaluated alone, with the labels of a trained model.

    Clips that nothing holds out are in `train`, which is all of them where the data name no splits.

    Raises:
        RecipeError: A stream.
        DataError: Clips without labels, or as from `DataSource`.
    """
    if data_args.unlabelled:
        raise DataError("Expected clips with labels to evaluate a trained model, got unlabelled true.")
    return _read_for_model(data_args, multi_label, model_labels)


def read_prediction_splits(data_args: DataArguments, model_labels: Sequence[str]) -> AudioSplits:
    """A data set that a trained model predicts, whatever labels it has: clips without, by its splits.

    Raises:
        RecipeError: A stream.
        DataError: As from `DataSource`.
    """
    changes = {"unlabelled": True, "linear_baseline": False, "leave_out_unknown_labels": False, "label_file": None}
    if data_args.has_groups or data_args.num_folds is not None:  # which tell nothing of clips without labels
        changes |= dict.fromkeys(("group_column_name", "group_pattern", "num_folds"))
        changes |= {} if data_args.fold_column_name else {"eval_fold": None}
    return _read_for_model(dataclasses.replace(data_args, **changes), True, model_labels)


def _read_for_model(data_args: DataArguments, multi_label: bool, model_labels: Sequence[str]) -> AudioSplits:
    if data_args.streaming:
        raise RecipeError("Expected streaming: false; clips are evaluated from a table, not from a stream.")
    splits = DataSource(data_args, multi_label, model_labels=model_labels).load()
    splits.ignore_length = data_args.ignore_length
    for name, rows in splits:
        setattr(splits, name, _some(rows, data_args.max_eval_samples))
    return splits


def read_once(read: Callable[[], AudioSplits]) -> AudioSplits:
    """A data set that the first process of each machine reads; the others map the rows that it keeps on disk.

    Where there is nothing to keep, as of streams and of what `datasets` keeps itself, they read it too, after the
    first one. All processes have to call it together.

    Raises:
        DataError: As from `read`, or the rows cannot be kept.
    """
    if not is_one_of_several():
        return read()
    state, own, kept = PartialState(), None, None
    with together():
        if state.is_local_main_process:
            own = read()
            if not all(isinstance(rows, IterableDataset) or rows.cache_files for _, rows in own):
                kept = dataclasses.replace(own, **{name: keep_on_disk(rows) for name, rows in own})
                kept = pickle.dumps(kept)  # names of files, which the processes of other machines may not have
    kept = gather_values(kept)[state.process_index - state.local_process_index]
    with together():
        if kept is not None:
            return pickle.loads(kept)
        return read() if own is None else own


def _some(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.shuffle(seed=0).select(range(min(limit, len(rows))))


def read_label_names(model: str) -> list[str]:
    """What a trained model calls its outputs, in their order.

    Raises:
        ModelError: Not a trained AST in Transformers' layout.
    """
    try:
        if not is_ast(model):
            raise ValueError("expected a trained model, whose labels are known")
        return list(ASTConfig.from_pretrained(model).id2label.values())
    except (ValueError, OSError, StrictDataclassError) as error:
        raise ModelError(f"{model} cannot be used: {' '.join(str(error).split())}") from error


def was_trained_on(model: str, dataset_name: str) -> bool:
    """Whether a model's folder says so, by the recipe in it.

    A recipe names data from the folder that it was started in, which may be another one than this: where they are not
    there, those that end alike are taken for them.

    Raises:
        RecipeError: The recipe cannot be read.
    """
    path = Path(model) / RECIPE_NAME
    trained_on = read_settings(path).get("dataset_name") if path.is_file() else None
    if trained_on is None:
        return False
    asked = os.path.realpath(dataset_name)
    if os.path.isabs(trained_on) or os.path.exists(trained_on) or not os.path.exists(asked):
        return os.path.realpath(trained_on) == asked
    end = [part for part in Path(trained_on).parts if part != ".."]
    return Path(asked).parts[-len(end) :] == tuple(end)


def check_fold(model: str, data_args: DataArguments) -> None:
    """Look whether the fold that is to be held out was held out from a model that the same data trained.

    Raises:
        DataError: The model's recipe held out another one.
    """
    path = Path(model) / RECIPE_NAME
    recipe = read_settings(path) if path.is_file() else {}
    if not recipe.get("eval_fold") or not data_args.eval_fold or not was_trained_on(model, data_args.dataset_name):
        return
    for name in ("eval_fold", "num_folds"):
        own, asked = recipe.get(name), getattr(data_args, name)
        if str(own or "") != str(asked or ""):
            raise DataError(
                f"Expected {name} {own or 'none'}, with which {model} was trained, got {asked or 'none'}, by which "
                "clips that trained it may be held out."
            )


def read_held_out(model: str, data_args: DataArguments, multi_label: bool, alone: str = "test") -> AudioSplits:
    """What a trained model is evaluated on: the clips that the data hold out, or all, where they hold out none.

    Of data that trained the model, all would flatter it: then it is those that its training held out. To calibrate on,
    there have to be validation clips.

    Args:
        model: Folder or Hub repository.
        data_args: Of the data.
        multi_label: Whether a clip may have several labels.
        alone: What clips are called that nothing holds out: "test" to evaluate, "validation" to calibrate.

    Raises:
        ModelError: Not a trained AST in Transformers' layout.
        RecipeError: A stream.
        DataError: As from `DataSource` and `check_fold`.
    """
    check_fold(model, data_args)
    splits = read_evaluation_splits(data_args, multi_label, read_label_names(model))
    enough = ("validation", "test") if alone == "test" else (alone,)
    if splits.train is None or any(getattr(splits, name) is not None for name in enough):
        return splits
    if was_trained_on(model, data_args.dataset_name):
        return read_splits(data_args, multi_label)
    return dataclasses.replace(splits, **{"train": None, alone: splits.train})
