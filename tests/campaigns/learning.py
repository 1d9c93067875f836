"""Trains variants of a recipe, over folds and seeds, and says how much they differ, paired by clip.

    python tests/campaigns/learning.py RECIPE --output_dir DIR [--variant NAME [key=value ...]] [--key value ...]

A variant is a name and keys that win over the recipe's; `key=null` takes one out, and {fold} and {seed} stand for the
run's, as in model_name_or_path=outputs/pretrained/{fold}. The first variant is the one that others are compared with.
Further keys hold for all of them. With a fold_column_name each fold is held out in turn, with groups (of speakers, by
--group_pattern) each group, with --num_folds each of so many, and the last epoch is reported; other data have a test
split.

Each run is kept in DIR/VARIANT/FOLD_SEED, and the same command goes on where it was stopped, also with more variants,
folds or seeds. Runs are in turn in this process (OMP_NUM_THREADS=1 gives it one thread). The table has accuracies in
per cent: of each seed over all held-out clips, their mean and deviation, the mean's difference from the first
variant and from the linear model (linear_baseline), with an interval of 95 % from a bootstrap over clips, each fold,
and processor time. --frozen adds logistic regressions on vectors of the model that the training starts from: those of
modeling-ast embed, or with --frozen "--level clip" "..." as each of these options has it.
"""

import argparse
import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import pyarrow.parquet as pq
import yaml
from transformers import set_seed

from modeling_ast.commands import embed, evaluate, train
from modeling_ast.data.decoding import decode
from modeling_ast.data.files import written_beside
from modeling_ast.data.intervals import mean_interval
from modeling_ast.data.metrics import multi_hot
from modeling_ast.data.predictions import PREDICTIONS_NAME
from modeling_ast.data.recipes import RecipeError, read_settings
from modeling_ast.data.sources import list_folds
from modeling_ast.data.splits import read_splits
from modeling_ast.training.arguments import Arguments, parse_arguments
from modeling_ast.training.baseline import predict_linearly, summarise
from modeling_ast.training.building import build_model_and_extractor

Settings = dict[str, Any]
RUN_NAME = "run.json"
# A short run is evaluated at its end alone, and its rate falls to zero by then.
NOT_IN_SHORT_RUNS = (
    *("load_best_model_at_end", "metric_for_best_model", "save_total_limit", "early_stopping_patience"),
    *("early_stopping_threshold", "weight_average_start", "weight_average_end", "weight_average_steps"),
    *("lr_step_factor", "lr_step_first_epochs", "lr_step_epochs"),
)
SHORT_RUN = {"eval_strategy": "no", "save_strategy": "no", "lr_scheduler_type": "cosine"}


class Run(NamedTuple):
    """One training, or the linear model's, of one fold."""

    variant: str
    fold: str | None
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}, {'test' if self.fold is None else f'fold {self.fold}'}, seed {self.seed}"

    def folder(self, output_dir: Path) -> Path:
        return output_dir / self.variant / f"{'test' if self.fold is None else self.fold}_{self.seed}"


def main(argv: list[str] | None = None) -> pandas.DataFrame:
    args, keys = parse_command_line(argv)
    base = read_settings(args.recipe) | keys | {"dataloader_num_workers": "0"}
    if args.epochs:
        base |= SHORT_RUN | {"num_train_epochs": str(args.epochs)} | dict.fromkeys(NOT_IN_SHORT_RUNS, "null")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    folds = [None]
    if not base.keys().isdisjoint(("fold_column_name", "group_column_name", "group_pattern", "num_folds")):
        # What is held out must not choose the epoch that it reports.
        base |= {"load_best_model_at_end": "null", "early_stopping_patience": "null"}
        arguments = read_arguments(base | {"do_train": "false"}, args.output_dir)
        folds = args.folds or list_folds(arguments.data)
    clips: dict[str, dict[Run, pandas.Series]] = {}
    seconds: dict[Run, float] = {}
    for seed in args.seeds:
        for fold, (name, own) in product(folds, args.variant.items()):
            run = Run(name, fold, seed)
            folder = run.folder(args.output_dir)
            settings = settings_of(run, base | own, folder)
            refuse_other_settings(settings, folder)
            print(f"{run}: {folder}", flush=True)
            predictions = {"linear": (args.output_dir / f"linear_{fold or 'test'}.csv", predict_by_linear_model)}
            if not args.no_training:
                predictions["trained"] = (folder / "trained.csv", predict_by_training)
            for options in args.frozen:
                kind = f"frozen {options}".strip()
                predict = partial(predict_by_frozen, options=shlex.split(options))
                predictions[kind] = (folder / f"{re.sub(r'[^a-z0-9]+', '_', kind)}.csv", predict)
            for kind, (path, predict) in predictions.items():
                clips.setdefault(kind, {})[run] = kept(path, partial(predict, settings, folder))
            if not args.no_training:
                seconds[run] = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))["cpu_seconds"]
        table = compare(clips, seconds)
        print(to_markdown(table), flush=True)
    return table


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--variant", nargs="+", action="append", metavar=("NAME", "key=value"), default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", nargs="+", help="to hold out; default: all")
    parser.add_argument("--epochs", type=int, help="short runs; default: the recipe as it is")
    parser.add_argument("--frozen", nargs="*", metavar="OPTIONS", help="of modeling-ast embed, in quotes")
    parser.add_argument("--no_training", action="store_true", help="with --frozen, which then stands alone")
    args, rest = parser.parse_known_args(argv)
    if len(rest) % 2 or not all(word.startswith("--") for word in rest[::2]):
        parser.error(f"expected --key value, got {' '.join(rest)}")
    if wrong := [word for _, *words in args.variant for word in words if "=" not in word]:
        parser.error(f"expected key=value behind the name of a variant, got {wrong[0]}")
    if args.no_training and args.frozen is None:
        parser.error("expected --frozen with --no_training, which leaves nothing else to do")
    args.frozen = [] if args.frozen is None else args.frozen or [""]
    args.variant = {name: dict(word.split("=", 1) for word in words) for name, *words in args.variant or [["recipe"]]}
    return args, {key.removeprefix("--"): value for key, value in zip(rest[::2], rest[1::2])}


def refuse_other_settings(settings: Settings, folder: Path) -> None:
    """A finished run stays what it is."""
    if (folder / RUN_NAME).is_file():
        before = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))["recipe"]
        if changed := [key for key in before | settings if before.get(key) != settings.get(key)]:
            raise RecipeError(
                f"{folder} is a run with another {', '.join(sorted(changed))}: delete it, or write elsewhere."
            )


def settings_of(run: Run, settings: Settings, folder: Path) -> Settings:
    """A run's own recipe."""
    own = {"seed": str(run.seed), "output_dir": str(folder / "model"), "overwrite_output_dir": "true"}
    if run.fold is not None:
        own["eval_fold"] = run.fold
    filled = {
        key: value.replace("{fold}", str(run.fold)).replace("{seed}", str(run.seed))
        if isinstance(value, str)
        else value
        for key, value in (settings | own).items()
    }
    return {key: value for key, value in filled.items() if value != "null"}


def read_arguments(settings: Settings, folder: Path) -> Arguments:
    """What they say, by the recipe that is written into a folder."""
    return parse_arguments([str(write_recipe(settings, folder))])


def write_recipe(settings: Settings, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value != "null"}))
    return path


# Predictions: what is right of each clip, by its path


def kept(path: Path, predict: Any) -> pandas.Series:
    """Which clips are named rightly, of a file, which is made where there is none."""
    if not path.is_file():
        right = predict()
        with written_beside(path) as unfinished:
            right.astype(int).rename("right").rename_axis("path").to_csv(unfinished)
    return pandas.read_csv(path, index_col="path")["right"]


def predict_by_training(settings: Settings, folder: Path) -> pandas.Series:
    """Train, and evaluate the model that is saved on the split that is reported."""
    recipe = str(write_recipe(settings, folder))
    before = sum(os.times()[:4])
    train.main([recipe])
    seconds = sum(os.times()[:4]) - before
    with written_beside(folder / RUN_NAME) as unfinished:
        unfinished.write_text(json.dumps({"cpu_seconds": seconds, "recipe": settings}), encoding="utf-8")
    split = "test" if "eval_fold" not in settings else "validation"
    evaluate.main([str(folder / "model"), recipe, "--split", split, "--output_dir", str(folder)])
    table = pandas.read_csv(folder / PREDICTIONS_NAME, dtype={"truth": str}, keep_default_na=False)
    table = table.set_index("path")
    return table.filter(regex="^p_").idxmax(axis=1).str.removeprefix("p_") == table["truth"]


def predict_by_linear_model(settings: Settings, folder: Path) -> pandas.Series:
    """The linear model's, of the training's and of the reported clips."""
    arguments = read_arguments(settings, folder)
    multi_label = arguments.model.problem_type == "multi_label_classification"
    splits = read_splits(arguments.data, multi_label)
    _, extractor = build_model_and_extractor(arguments.model, splits.label_names)
    reported = splits.validation if splits.test is None else splits.test
    (features, labels), (reported_features, truth) = (
        summarise(decode(rows, extractor.sampling_rate), extractor, len(splits.label_names))
        for rows in (splits.train, reported)
    )
    probabilities, _ = predict_linearly(features, labels, reported_features)
    paths = [audio["path"] for audio in reported["audio"]]
    return pandas.Series(probabilities.argmax(axis=1) == truth.argmax(axis=1), paths)


def predict_by_frozen(settings: Settings, folder: Path, options: Sequence[str]) -> pandas.Series:
    """A logistic regression on the vectors of the model that the training starts from."""
    arguments = read_arguments(settings, folder)
    set_seed(arguments.training.seed)
    splits = read_splits(arguments.data, arguments.model.problem_type == "multi_label_classification")
    model, extractor = build_model_and_extractor(arguments.model, splits.label_names)
    start, output = folder / "start", folder / "frozen.parquet"
    for each in (model, extractor):
        each.save_pretrained(start)
    recipe = str(write_recipe(settings, folder))
    embed.main(
        [
            "--recipe",
            recipe,
            "--model",
            str(start),
            "--output",
            str(output),
            "--overwrite",
            "--batch_size",
            "32",
            *options,
        ]
    )
    shutil.rmtree(start)
    table = pq.read_table(output).to_pandas()
    labels = table["label"] if "label" in table else table["labels"].str[0]  # one each, also where it may have several
    truth = multi_hot(list(map(splits.label_names.index, labels)), len(splits.label_names)).astype(int)
    vectors = np.stack(table["embedding"])
    trains, is_reported = (
        (table["split"] == split).to_numpy() for split in ("train", "validation" if splits.test is None else "test")
    )
    probabilities, _ = predict_linearly(vectors[trains], truth[trains], vectors[is_reported])
    return pandas.Series(
        probabilities.argmax(axis=1) == truth[is_reported].argmax(axis=1), table["path"][is_reported].to_numpy()
    )


# The table


def compare(clips: dict[str, dict[Run, pandas.Series]], seconds: dict[Run, float]) -> pandas.DataFrame:
    """A row a variant and kind of prediction; the first variant and the linear model are what others differ from.

    Args:
        clips: What is right of each run's clips, by the kind of prediction; with the linear model's.
        seconds: Processor time of the trainings.
    """
    first, rows = next(iter(clips["linear"])).variant, []
    matrices = {
        (kind, name): by_clip({run: right for run, right in runs.items() if run.variant == name})
        for kind, runs in clips.items()
        for name in dict.fromkeys(run.variant for run in runs)
    }
    linear = matrices["linear", first].iloc[:1]  # the same for all seeds and variants
    for (kind, name), right in matrices.items():
        if kind == "linear" and name != first:
            continue
        right = linear if kind == "linear" else right  # (seeds, clips)
        seeds = right.mean(axis=1)
        own = [value for run, value in seconds.items() if run.variant == name and kind == "trained"]
        rows.append(
            {
                "model": "linear" if kind == "linear" else f"{name}, {kind}",
                "seeds": seeds.tolist(),
                "mean": seeds.mean(),
                "deviation": seeds.std(ddof=1),
                "to_first": None if name == first else difference(right, matrices[kind, first]),
                "to_linear": None if kind == "linear" else difference(right, linear),
                "folds": right.mean(axis=0).groupby(level="fold", sort=False).mean().to_dict(),
                "cpu_seconds": np.mean(own) if own else np.nan,
            }
        )
    return pandas.DataFrame(rows)


def by_clip(runs: dict[Run, pandas.Series]) -> pandas.DataFrame:
    """Which clips are right, 0 or 1, as (seeds, clips); the columns are fold and path."""
    seeds = dict.fromkeys(run.seed for run in runs)
    folds = {seed: {run.fold or "test": right for run, right in runs.items() if run.seed == seed} for seed in seeds}
    return pandas.DataFrame({seed: pandas.concat(parts, names=["fold"]) for seed, parts in folds.items()}).T


def difference(right: pandas.DataFrame, other: pandas.DataFrame) -> tuple[float, float, float]:
    """Of two means over seeds and clips, with its interval of 95 %."""
    by_clip = right.mean(axis=0) - other.mean(axis=0)[right.columns]  # (clips,)
    interval = mean_interval(by_clip.to_numpy())
    return by_clip.mean(), interval.low, interval.high


def to_markdown(table: pandas.DataFrame) -> str:
    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    def interval(value: tuple[float, float, float] | None) -> str:
        return "" if value is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * each for each in value))

    first = table["model"][1].rpartition(", ")[0]
    header = ("model", "seeds", "mean", "deviation", f"beside {first}", "beside linear", "folds", "CPU s a run")
    lines = [header, ["---"] * len(header)]
    for row in table.to_dict("records"):
        lines.append(
            [
                row["model"],
                ", ".join(map(percent, row["seeds"])),
                f"{percent(row['mean'])} %",
                "" if np.isnan(row["deviation"]) else percent(row["deviation"]),
                interval(row["to_first"]),
                interval(row["to_linear"]),
                ", ".join(f"{fold} {percent(value)}" for fold, value in row["folds"].items()),
                "" if np.isnan(row["cpu_seconds"]) else f"{row['cpu_seconds']:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
