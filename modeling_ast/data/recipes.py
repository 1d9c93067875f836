"""A recipe is a saved command line: a flat YAML file whose keys are fields of the argument dataclasses.

Here are its reading, and the block that names data. That of a model is in `model_arguments`, those of training are in
`training.arguments`.
"""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from modeling_ast.data.labels import plain
from modeling_ast.data.model_arguments import ModelArguments, check_numbers
from modeling_ast.data.stretch_arguments import STRETCH_INTERVALS, StretchArguments

RECIPE_NAME = "recipe.yaml"
_MAX_BYTES = 1 << 20  # of a recipe; the longest of ours has 3,000
# What YAML calls values that are written without a tag; a tag such as !!python/name asks to make something of them.
_PLAIN_TAGS = (yaml.BaseLoader.DEFAULT_SCALAR_TAG, yaml.BaseLoader.DEFAULT_SEQUENCE_TAG)
# From this ratio of `difflib` on, a key that is none is taken for a misspelt one. The most similar of Transformers'
# keys to one of ours, length_column_name, has 0.8.
_NEAR_MISS = 0.85


class RecipeError(ValueError):
    """A recipe or command line that cannot be used. The message says which key, what was expected and what came."""

    def __init__(self, message: str):
        super().__init__(plain(message))


@dataclass
class DataArguments(StretchArguments):
    """Where the rows come from; see `modeling_ast.data.sources.DataSource`."""

    dataset_name: str = field(
        metadata={
            "help": "synthetic, a folder with a sub-folder a class, a list (.csv, .tsv, .txt, .jsonl, or .json as the "
            "original's), recordings with label files of Audacity or Raven beside them, Parquet (file or folder), a "
            "folder of tar archives (WebDataset) or with metadata.csv (AudioFolder), an address or pattern of Parquet "
            "files or archives (s3://bucket/shards, shards/train-*.parquet), or the name of a data set on the Hub."
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
    train_split_name: str | None = field(
        default=None,
        metadata={
            "help": "Which split of Parquet, tar archives or the Hub trains, if not the one called train; or several, "
            "as bal_train+unbal_train."
        },
    )
    validation_split_name: str | None = field(
        default=None,
        metadata={"help": "Which one the epoch is chosen on, such as eval; if not called validation, dev or eval."},
    )
    test_split_name: str | None = field(
        default=None, metadata={"help": "Which one is reported, if not the one called test."}
    )
    audio_column_name: str = field(
        default="audio", metadata={"help": "Column with the sound; of tar archives the ending, such as wav."}
    )
    label_column_name: str = field(
        default="label", metadata={"help": "Column with the label or labels; of tar archives cls, txt or json.KEY."}
    )
    unlabelled: bool = field(
        default=False,
        metadata={
            "help": "Take clips without labels, whatever the data say of them: of a folder all sounds, of a list or a "
            "table the column of sounds alone."
        },
    )
    audio_dir: str | None = field(
        default=None, metadata={"help": "Where the paths of a list start, relative to the list."}
    )
    label_separator: str = field(default=",", metadata={"help": "Between labels in one text."})
    fold_column_name: str | None = field(
        default=None, metadata={"help": "Column with the fold: a whole number, or a name such as a speaker's."}
    )
    eval_fold: str | None = field(
        default=None,
        metadata={
            "help": "What to hold out: a fold, needed with fold_column_name; with num_folds its number; a group. "
            "modeling-ast folds gives each."
        },
    )
    group_column_name: str | None = field(
        default=None,
        metadata={"help": "Column with what clips have in common (speaker, site, device): no split divides a group."},
    )
    group_pattern: str | None = field(
        default=None,
        metadata={
            "help": "Instead, a regular expression that finds the group in each file's name, such as ^([a-z]+)_."
        },
    )
    num_folds: int | None = field(
        default=None,
        metadata={
            "help": "Deal the clips into so many folds, or the groups where there are some, or the recordings of "
            "stretches; of one label a clip each fold has a like share of every label."
        },
    )
    split_column_name: str | None = field(
        default=None, metadata={"help": "Column that says train, validation or test."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training clips to hold out where the data holds out none."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Train on clips while they arrive from the Hub, or from Parquet or tar archives on this disk or "
            "elsewhere; needs max_steps."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only so many clips, of a stream the first."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for each of the other splits."})
    max_bad_clips: int = field(
        default=0,
        metadata={
            "help": "Training clips that may turn out not to be decodable, or to be shorter than 25 ms: so many are "
            "replaced by others (a stream goes on without them) and named in bad_clips.csv. One more ends the run; "
            "held-out clips always do."
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
        samples = dict.fromkeys(("max_train_samples", "max_eval_samples"), "[1, inf)")
        numbers = {"max_bad_clips": "[0, inf)", "num_folds": "[2, inf)", **samples, **STRETCH_INTERVALS}
        check_numbers(self, numbers)
        self.check_stretch_keys()
        if not self.label_separator:
            raise ValueError("Expected a label_separator, got nothing.")
        self._check_groups()
        own_names = [part for name in self.split_names.values() for part in name.split("+")]
        if len(set(own_names)) < len(own_names):
            raise ValueError(f"Expected splits of their own to train, choose and report on, got {self.split_names}.")
        not_for_streams = (
            *("audio_dir", "fold_column_name", "split_column_name", "validation_file", "test_file"),
            *("linear_baseline", "leave_out_unknown_labels", "group_column_name", "group_pattern", "num_folds"),
            *self.given_stretch_keys,
        )
        for name in not_for_streams if self.streaming else ():
            if getattr(self, name):
                raise ValueError(f"{name} has no effect on a stream: leave it out, or streaming.")
        for name in ("linear_baseline", "leave_out_unknown_labels") if self.unlabelled else ():
            if getattr(self, name):
                raise ValueError(f"{name} needs labels: leave it out, or unlabelled.")

    def _check_groups(self) -> None:
        """Refuse keys of groups that say two things, or nothing."""
        if self.group_column_name is not None and self.group_pattern is not None:
            raise ValueError("Expected group_column_name or group_pattern, got both.")
        if self.group_pattern is not None:
            try:
                num_brackets = re.compile(self.group_pattern).groups
            except re.error as error:
                raise ValueError(f"Expected group_pattern to be a regular expression, got {error}.") from error
            if num_brackets > 1:
                raise ValueError(
                    "Expected one pair of brackets in group_pattern, around the group, or none, got "
                    f"{num_brackets}: write others as (?:...)."
                )
        if self.num_folds is not None and self.fold_column_name is not None:
            raise ValueError("num_folds makes folds, and fold_column_name names them: expected one of them, got both.")
        if self.unlabelled and (self.num_folds is not None or self.has_groups and self.eval_fold is None):
            raise ValueError(
                "Of clips without labels a group is held out by its name alone, as eval_fold: leave out num_folds, "
                "groups or unlabelled, or give it."
            )

    @property
    def has_groups(self) -> bool:
        """Whether clips are in groups that no split divides."""
        return self.group_column_name is not None or self.group_pattern is not None

    @property
    def makes_folds(self) -> bool:
        """Whether the folds are made here, of groups or of clips, and not given by a column."""
        return (self.has_groups or self.num_folds is not None) and self.fold_column_name is None

    @property
    def split_names(self) -> dict[str, str]:
        """What the data call the splits, those of which it is said."""
        names = {split: getattr(self, f"{split}_split_name") for split in ("train", "validation", "test")}
        return {split: name for split, name in names.items() if name}

    def labelled_splits(self, has_teacher: bool) -> tuple[str, ...]:
        """Splits whose labels are read: of clips without labels those that are held out, and only for the scores of a
        model that a teacher gives its labels to."""
        of_held_out = ("validation", "test") if has_teacher else ()
        return of_held_out if self.unlabelled else ("train", "validation", "test")


@dataclass
class BatchArguments:
    """How clips are read and predicted, by commands that do not train; as in `TrainingArguments`."""

    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Clips at a time."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read clips."})

    def __post_init__(self):
        check_numbers(self, {"per_device_eval_batch_size": "[1, inf)", "dataloader_num_workers": "[0, inf)"})


class _Parser(HfArgumentParser):
    """Raises where argparse would print its usage (some 150 keys long) and exit."""

    def error(self, message: str):
        raise RecipeError(message)


def read_recipe(path: str | Path) -> list[str]:
    """A recipe as the command line that it stands for: `["--key=value", ...]`.

    Values are handed on as they are written, without YAML's own casts, in which `1e-5` is a string and `no` is false;
    the parser casts them.

    Raises:
        RecipeError: No such file, too long, not YAML, not flat, a key that is there twice, or a value with a tag.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{path}: expected a recipe of at most {_MAX_BYTES:,} bytes, got a longer file.")
        node = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(f"{path}: not YAML ({line}{error.problem}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}).") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: expected lines of the form `key: value`, got lists within lists.") from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{path}: expected lines of the form `key: value`.")
    arguments, seen = [], set()
    for key_node, value_node in node.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = key_node.value
        if not (isinstance(key_node, yaml.ScalarNode) and re.fullmatch(r"\w+", key)):
            raise RecipeError(f"{where}: expected the name of a key before the colon, got {key!r:.40}.")
        if key in seen:
            raise RecipeError(f"{where}: {key} is there twice.")
        seen.add(key)
        if value_node.value in ("null", "~") and value_node.style is None:  # YAML's words for nothing
            continue
        items = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
        if not all(isinstance(item, yaml.ScalarNode) and item.value != "" for item in items):
            raise RecipeError(f"{where}: expected a value, or a list of values, for {key}.")
        if tagged := [node.tag for node in (key_node, value_node, *items) if node.tag not in _PLAIN_TAGS]:
            raise RecipeError(f"{where}: expected a value without a tag for {key}, got {tagged[0]}.")
        # `--key=value` where it can be, for values that start with a dash.
        is_list = isinstance(value_node, yaml.SequenceNode)
        if is_list and any(item.value.startswith("--") for item in items):
            raise RecipeError(f"{where}: expected values for {key}, got a key in its list.")
        arguments += [f"--{key}", *(item.value for item in items)] if is_list else [f"--{key}={value_node.value}"]
    return arguments


def read_settings(path: str | Path) -> dict[str, str | list[str]]:
    """What a run has saved as its recipe: keys and values, as they are written.

    Raises:
        RecipeError: It cannot be read.
    """
    try:
        settings = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path}: the recipe of an earlier run cannot be read ({reason}).") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: expected the recipe of an earlier run, got something else.")
    return settings


def parse_blocks(kinds: Sequence[type], keys: Sequence[str], description: str | None = None) -> tuple[Any, ...]:
    """A command line to blocks of arguments.

    Args:
        kinds: Dataclasses, whose fields are the keys.
        keys: `["--key", "value", "--key=value", ...]`; the last of the same keys wins.
        description: Printed for `--help`.

    Raises:
        RecipeError: Unknown or abbreviated keys, or values of a wrong type.
    """
    parser = _Parser(
        kinds,
        allow_abbrev=False,
        usage="%(prog)s [RECIPE.yaml] [--key value ...]",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    try:
        namespace, unknown = parser.parse_known_args(keys)
        if unknown:
            names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
            key = unknown[0].removeprefix("--").partition("=")[0]
            near = difflib.get_close_matches(key, names, n=1, cutoff=_NEAR_MISS)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise RecipeError(
                f"Unknown: {' '.join(unknown)}. Keys, in a recipe or as --key value, are written in full.{meant}"
            )
        values = vars(namespace)
        return tuple(
            kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})
            for kind in kinds
        )
    except (ValueError, ImportError) as error:
        raise RecipeError(str(error)) from error


def parse_data_arguments(
    recipe: str | Path | None,
    keys: Sequence[str],
    purpose: str,
    others: Iterable[str] = (),
    without: Iterable[str] = (),
) -> tuple[ModelArguments, DataArguments, BatchArguments]:
    """A recipe and the keys that win over it, for a command that looks at data or runs a model, but does not train.

    Keys of training are passed over in the recipe, unless one of them looks like a misspelt key of model or data. On
    the command line all keys that have no effect are refused.

    Args:
        recipe: File; `None` where there are keys alone.
        keys: Of the command line: `["--key", "value", ...]` or `["--key=value", ...]`.
        purpose: What the command makes, for the message.
        others: Keys that have an effect, besides those that say where the clips come from.
        without: Of the latter, those that have none.

    Raises:
        RecipeError: Keys without effect, keys that look misspelt, values of a wrong type, or a recipe that cannot be
            read.
    """
    kinds = (ModelArguments, DataArguments, BatchArguments)
    known = {each.name for kind in kinds for each in dataclasses.fields(kind)}
    from_recipe, is_known = [], False
    for argument in [] if recipe is None else read_recipe(recipe):
        if argument.startswith("--"):
            key = argument.removeprefix("--").partition("=")[0]
            is_known = key in known
            if not is_known:
                _refuse_near_miss(key, recipe)
        if is_known:
            from_recipe.append(argument)
    _refuse_without_effect(keys, purpose, set(others), set(without))
    return parse_blocks(kinds, [*from_recipe, *keys])


def _refuse_near_miss(key: str, recipe: str | Path) -> None:
    names = [each.name for kind in (ModelArguments, DataArguments) for each in dataclasses.fields(kind)]
    if near := difflib.get_close_matches(key, names, n=1, cutoff=_NEAR_MISS):
        raise RecipeError(f"{recipe}: unknown key {key}. Did you mean {near[0]}?")


def _refuse_without_effect(keys: Sequence[str], purpose: str, others: set[str], without: set[str]) -> None:
    of_training = {"linear_baseline", "max_bad_clips"}
    effective = others | {each.name for each in dataclasses.fields(DataArguments)} - of_training - without
    given = {key.removeprefix("--").partition("=")[0] for key in keys if key.startswith("--")}
    if given - effective:
        raise RecipeError(
            f"No effect on {purpose}: {', '.join(sorted(given - effective))}. Models bring their own settings; keys "
            f"can say which clips are heard{', and ' if others else ''}{', '.join(sorted(others))}."
        )
