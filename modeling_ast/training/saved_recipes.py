"""The resolved arguments of a run, saved beside it as a recipe that gives the same run."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from modeling_ast.training.arguments import Arguments, ASTTrainingArguments


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
    for each in dataclasses.fields(block):
        value = getattr(block, each.name)
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        is_default = isinstance(block, ASTTrainingArguments) and value == default
        # Saved is the batch of all devices, so that the recipe runs on another number of them.
        if each.name == "per_device_train_batch_size" and block.global_batch_size is not None:
            continue
        is_secret = each.name.endswith("_token")  # such as hub_token; the recipe is uploaded with the model
        if not each.init or value is None or is_default or is_secret:
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
            yield each.name, value
