"""What 5, 10 or 20 labels a class are worth: a head on embeddings, fine-tuning, a linear model; and a review's order.

    python tests/campaigns/few_labels.py RECIPE --model MODEL --output_dir DIR [--labels 5 10 20] [--seeds 0 1 2]
        [--epochs 30] [--no_fine_tuning] [--no_review] [--key value ...]

RECIPE names the clips, of which MODEL must not have seen the classes; keys of its data win over it. Its training clips
are drawn from, its test clips (or else those that it validates on) are told the accuracy of. Of each draw:

    fit: the head of modeling-ast fit, and whether the interval that it tells holds what the test clips say
    fine-tuned: MODEL trained on the same clips by RECIPE, with cross entropy and a warm-up of 20 updates, for --epochs
        (its learning rate and batch can be given)
    linear: logistic regression on mean and deviation of the features

Then a review is simulated, on the training clips, by an annotator who knows their labels: how many answers it takes,
in the order of the review and in a random one, until a head reaches 90 % of the accuracy that all labels give.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as pq
import yaml

from modeling_ast.commands import embed, train
from modeling_ast.data.decoding import decode
from modeling_ast.data.recipes import parse_data_arguments, read_settings
from modeling_ast.data.splits import read_splits
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.examples import Examples
from modeling_ast.inference.linear_heads import choose_head, normalize
from modeling_ast.inference.parquet_tables import write_rows
from modeling_ast.inference.review import Review
from modeling_ast.training.baseline import predict_linearly, summarise

SINGLE = "single_label_classification"
# Keys that hold out clips otherwise than the list of a draw does, or read epochs that it does not have.
NOT_IN_A_DRAW = (
    *("fold_column_name", "eval_fold", "validation_fraction", "dataset_config_name", "audio_dir", "linear_baseline"),
    *("load_best_model_at_end", "metric_for_best_model", "weight_average_start", "weight_average_end"),
    *(
        "lr_step_first_epochs",
        "lr_step_epochs",
        "lr_step_factor",
        "early_stopping_patience",
        "hidden_size",
        "mean",
        "std",
    ),
    *("num_hidden_layers", "num_attention_heads", "intermediate_size", "frequency_stride", "time_stride"),
    *("num_mel_bins", "initializer_range", "audio_column_name", "label_column_name", "max_train_samples"),
)
SHORT = {"eval_strategy": "no", "save_strategy": "no", "lr_scheduler_type": "cosine", "split_column_name": "split"}
SHORT |= {"problem_type": SINGLE, "warmup_steps": 20}  # of some hundred updates
ENOUGH = 0.9  # of the accuracy that all labels give


def main(argv: list[str] | None = None) -> None:
    args, keys = parse_command_line(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table = args.output_dir / "store.parquet"
    embed.main(["--recipe", args.recipe, "--model", args.model, "--output", str(table), *keys])
    known = pq.read_table(table, columns=["path", "split", "label"]).to_pandas()
    store = EmbeddingStore(table)
    model, extractor = store.load_model()
    features = normalize(store.vectors(np.arange(len(store))), model.config.layer_norm_eps)
    names = sorted(known["label"].unique())
    truth = known["label"].to_numpy()[:, None] == np.array(names)
    held_out = np.flatnonzero(known["split"] == ("test" if "test" in set(known["split"]) else "validation"))
    pool = np.flatnonzero(known["split"] == "train")
    linear = describe_clips(args.recipe, keys, extractor, len(names), known)
    rows = []
    for number in args.labels:
        for seed in args.seeds:
            drawn = draw(known["label"].to_numpy(), pool, number, seed)
            row = {"labels a class": number, "seed": seed, **measure_fit(features, truth, drawn, held_out)}
            row["linear"] = measure_linear(linear, truth, drawn, held_out)
            if not args.no_fine_tuning:
                row["fine-tuned"] = fine_tune(args, known, drawn, held_out, f"{number}_{seed}")
            rows.append(row)
            print(rows[-1], flush=True)
    figures = pandas.DataFrame(rows)
    figures.to_csv(args.output_dir / "few_labels.csv", index=False)
    print(figures.groupby("labels a class").mean().drop(columns="seed").to_string(float_format="{:.3f}".format))
    if not args.no_review:
        measure_review(args, store, known, features, truth, pool, held_out, model.config.layer_norm_eps)


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning_rate", default="3e-4", help="of fine-tuning")
    parser.add_argument("--global_batch_size", default="8", help="likewise")
    parser.add_argument("--no_fine_tuning", action="store_true")
    parser.add_argument("--no_review", action="store_true")
    return parser.parse_known_args(argv)


def describe_clips(
    recipe: str, keys: list[str], extractor: Any, num_labels: int, known: pandas.DataFrame
) -> np.ndarray:
    """Mean and deviation of the features of each clip, in the order of the store."""
    _, data_args, _ = parse_data_arguments(recipe, keys, "few labels", ("problem_type",))
    splits = read_splits(data_args, multi_label=False)
    parts = [summarise(decode(rows, extractor.sampling_rate), extractor, num_labels)[0] for _, rows in splits]
    found = np.concatenate(parts)
    assert len(found) == len(known)
    return found


def draw(labels: np.ndarray, pool: np.ndarray, number: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [generator.choice(pool[labels[pool] == name], number, replace=False) for name in sorted(set(labels))]
    )


def make_examples(truth: np.ndarray, rows: np.ndarray) -> Examples:
    places = np.arange(len(rows))
    return Examples([], rows, places, truth[rows], truth[rows], places, SINGLE)


def measure_fit(features: np.ndarray, truth: np.ndarray, drawn: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    head, expected = choose_head(features[drawn], make_examples(truth, drawn))
    right = head.logits(features[held_out]).argmax(axis=1) == truth[held_out].argmax(axis=1)
    value = float(right.mean())
    told = {"fit": value, "expected": expected.value}
    if (interval := expected.interval) is None:
        return told
    holds = float(interval.low <= value <= interval.high)
    return {**told, "low": interval.low, "high": interval.high, "interval holds it": holds}


def measure_linear(features: np.ndarray, truth: np.ndarray, drawn: np.ndarray, held_out: np.ndarray) -> float:
    probabilities, _ = predict_linearly(features[drawn], truth[drawn].astype(int), features[held_out])
    return float((probabilities.argmax(axis=1) == truth[held_out].argmax(axis=1)).mean())


def fine_tune(
    args: argparse.Namespace, known: pandas.DataFrame, drawn: np.ndarray, held_out: np.ndarray, name: str
) -> float:
    folder = args.output_dir / "fine_tuned" / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "clips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("audio", "label", "split"))
        for rows, split in ((drawn, "train"), (held_out, "validation")):
            writer.writerows((known["path"][row], known["label"][row], split) for row in rows.tolist())
    settings = {key: value for key, value in read_settings(args.recipe).items() if key not in NOT_IN_A_DRAW}
    settings |= SHORT | {"dataset_name": str(folder / "clips.csv"), "model_name_or_path": args.model}
    settings |= {"output_dir": str(folder / "model"), "num_train_epochs": args.epochs}
    settings |= {"learning_rate": args.learning_rate, "global_batch_size": args.global_batch_size, "use_cpu": "true"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return train.main([str(folder / "recipe.yaml")])["validation_accuracy"]  # which chooses nothing


def measure_review(
    args: argparse.Namespace,
    store: EmbeddingStore,
    known: pandas.DataFrame,
    features: np.ndarray,
    truth: np.ndarray,
    pool: np.ndarray,
    held_out: np.ndarray,
    epsilon: float,
) -> None:
    def reached(head: Any) -> float:
        return float((head.logits(features[held_out]).argmax(axis=1) == truth[held_out].argmax(axis=1)).mean())

    everything = reached(choose_head(features[pool], make_examples(truth, pool))[0])
    print(f"All {len(pool)} labels give {everything:.3f}.")
    table = pq.read_table(store.path).take(pool)
    fields = {name: table.schema.field(name).type for name in ("path", "start", "end", "embedding")}
    path = args.output_dir / "pool.parquet"
    write_rows(path, table.select(list(fields)).to_pylist(), fields, store.settings)
    labels, needed = known["label"].to_numpy()[pool], []
    for order in ("mixed", "uncertain", "different", "random"):
        for seed in args.seeds:
            answers = args.output_dir / f"answers_{order}_{seed}.csv"
            answers.unlink(missing_ok=True)
            review = Review(EmbeddingStore(path), answers, (), epsilon, SINGLE, order, seed=seed)
            count, value = 0, 0.0
            while (question := review.ask()) is not None and value < ENOUGH * everything:
                review.answer(question.row, [labels[question.row]])
                count += 1
                if count % 10 == 0 and review.fit():
                    value = reached(review.head)
            needed.append({"order": order, "seed": seed, "answers": count, "accuracy": value})
            print(needed[-1], flush=True)
    figures = pandas.DataFrame(needed)
    figures.to_csv(args.output_dir / "review.csv", index=False)
    print(figures.groupby("order")["answers"].agg(["mean", "min", "max"]).to_string(float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
