"""A recipe is a saved command line: a flat YAML file whose keys are fields of the argument dataclasses."""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from modeling_ast.data.labels import plain
from modeling_ast.training.arguments import ASTTrainingArguments, AugmentArguments, DataArguments, ModelArguments

RECIPE_NAME = "recipe.yaml"
_MAX_BYTES = 1 << 20  # of a recipe; the longest of ours has 3,000
# What YAML calls values that are written without a tag; a tag such as !!python/name asks to make something of them.
_PLAIN_TAGS = (yaml.BaseLoader.DEFAULT_SCALAR_TAG, yaml.BaseLoader.DEFAULT_SEQUENCE_TAG)
# Behind the arguments of a tool that only looks at a recipe: its batches need not fit this machine's devices.
NOT_TRAINING = "--do_train=false"
Arguments = tuple[ModelArguments, DataArguments, AugmentArguments, ASTTrainingArguments]


class RecipeError(ValueError):
    """A recipe or command line that cannot be used. The message says which key, what was expected and what came."""

    def __init__(self, message: str):
        super().__init__(plain(message))


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


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """`[RECIPE] [--key value ...]` to the four argument blocks; the command line wins over the recipe.

    Raises:
        RecipeError: Unknown or abbreviated keys, values of a wrong type, or a recipe that cannot be read.
    """
    argv = list(argv)
    recipe = read_recipe(argv.pop(0)) if argv and not argv[0].startswith("-") else []
    parser = _Parser(
        (ModelArguments, DataArguments, AugmentArguments, ASTTrainingArguments),
        allow_abbrev=False,
        prog="run_audio_classification.py",
        usage="%(prog)s [RECIPE.yaml] [--key value ...]",
        description="Train and evaluate an Audio Spectrogram Transformer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    try:
        namespace, unknown = parser.parse_known_args(recipe + argv)
        if unknown:
            raise RecipeError(f"Unknown: {' '.join(unknown)}. Keys are written in full, as --key value.")
        values = vars(namespace)
        arguments = tuple(
            kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})
            for kind in parser.dataclass_types
        )
        _check_stream(arguments[1], arguments[3])
        return arguments
    except (ValueError, ImportError) as error:
        raise RecipeError(str(error)) from error


def check_data_keys(
    keys: Sequence[str], purpose: str, others: Iterable[str] = (), without: Iterable[str] = ()
) -> None:
    """Refuse keys of a recipe that have no effect on a tool which only looks at its clips.

    Args:
        keys: Of a command line: `["--key", "value", ...]` or `["--key=value", ...]`.
        purpose: What the tool does, for the message.
        others: Keys that have an effect, besides those that say where the clips come from.
        without: Of the latter, those that have none.

    Raises:
        RecipeError: Keys without effect.
    """
    of_training = {"linear_baseline", "max_bad_clips", *without}
    known = set(others) | {field.name for field in dataclasses.fields(DataArguments)} - of_training
    given = {key.removeprefix("--").partition("=")[0] for key in keys if key.startswith("--")}
    if given - known:
        raise RecipeError(
            f"No effect on {purpose}: {', '.join(sorted(given - known))}. Models bring their own settings; keys can "
            f"say which clips are heard{', and ' if others else ''}{', '.join(sorted(others))}."
        )


def _check_stream(data_args: DataArguments, training_args: ASTTrainingArguments) -> None:
    """What needs to know all clips in advance is refused where they come as a stream."""
    if not data_args.streaming:
        return
    if training_args.do_train and training_args.max_steps <= 0:
        raise ValueError("Expected max_steps with streaming: a stream does not tell how long an epoch is.")
    for name in ("class_balanced_sampling", "lr_step_factor", "weight_average_start"):
        if getattr(training_args, name):
            raise ValueError(f"{name} needs to know all clips in advance, which a stream does not tell.")


def save_recipe(arguments: Arguments, path: str | Path) -> None:
    """The resolved arguments as a recipe that gives the same run.

    Of `TrainingArguments` only what is not default, and no access tokens.
    """
    lines = ["# The resolved recipe of this run."]
    for block in arguments:
        lines.append(f"# {type(block).__name__}")
        for name, value in _settings(block):
            lines.append(yaml.safe_dump({name: value}, width=10**6, default_flow_style=False).strip())
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _settings(block) -> Iterator[tuple[str, Any]]:
    """Names and values to write: plain ones, lists of text, and JSON for the rest."""
    for field in dataclasses.fields(block):
        value = getattr(block, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        is_default = isinstance(block, ASTTrainingArguments) and value == default
        # Saved is the batch of all devices, so that the recipe runs on another number of them.
        if field.name == "per_device_train_batch_size" and block.global_batch_size is not None:
            continue
        is_secret = field.name.endswith("_token")  # such as hub_token; the recipe is uploaded with the model
        if not field.init or value is None or is_default or is_secret:
            continue
        if hasattr(value, "to_dict"):  # settings of Accelerate
            value = value.to_dict()
        if isinstance(value, dict):
            value = json.dumps(value)
        elif isinstance(value, (list, tuple)):
            value = [str(item) for item in value]
            if len(value) < 2:  # some keys of `TrainingArguments` take one value and hold a list
                value = value[0] if value else None
        elif not isinstance(value, (bool, int, float)):
            value = str(getattr(value, "value", value))  # an enumeration's value
        if value is not None:
            yield field.name, value
