"""Events by the tokens of patches beside events by windows, after annotated_recordings.py --run.

    python tests/campaigns/frame_head.py outputs/annotated

A patch's column, some 0.1 s, is finer than a window. Its tokens' mean goes through the model's own classifier, and
through logistic regressions, one a label, on the annotated recordings of OUT/train; where windows overlap the scores'
mean is taken. Thresholds and lengths of all three are chosen on OUT/choose, as modeling-ast calibrate chooses them,
and what they find is compared with the annotations of OUT/report.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modeling_ast.commands import embed
from modeling_ast.data.classifiers import load_classifier
from modeling_ast.data.labels import DataError
from modeling_ast.data.truth import Annotations, read_truth
from modeling_ast.inference.event_calibration import choose_options
from modeling_ast.inference.scored_recordings import Criteria, ScoredRecording, choose_labels, read_scored
from modeling_ast.inference.scored_recordings import score_recordings as score
from modeling_ast.inference.tags_folder import TagsFolder
from modeling_ast.inference.timeline import Event, Timeline

RATE = 16000
WINDOW, HOP = "0.99", "0.32"  # seconds: columns of 80 ms, each of which lies in three windows
COLUMNS = ("onset_error", "psds1", "psds2")


def main(argv: list[str] | None = None) -> str:
    """Embed, fit, choose, and print the table, which is returned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="of annotated_recordings.py --run")
    folder = parser.parse_args(argv).output
    model, _ = load_classifier(str(folder / "model"), "single_label_classification")
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    parts = {part: read_truth(str(folder / part)) for part in ("train", "choose", "report")}
    patches = {part: read_patches(folder, part) for part in parts}

    vectors, targets = gather(patches["train"], parts["train"], names)
    heads = [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(vectors, column)
        for column in targets.T
    ]

    @torch.inference_mode()
    def classify(own: np.ndarray) -> np.ndarray:
        return model.classifier(torch.from_numpy(own)).sigmoid().numpy()

    def regress(own: np.ndarray) -> np.ndarray:
        return np.stack([head.predict_proba(own)[:, 1] for head in heads], axis=1)

    tags = TagsFolder.reopen(folder / "tags", read_only=True)
    sides = {"windows": {part: read_scored(tags, parts[part]) for part in ("choose", "report")}}
    for side, predict in {"patches, the model's classifier": classify, "patches, regressions": regress}.items():
        sides[side] = {
            part: [to_recording(path, rows, parts[part], names, predict) for path, rows in patches[part].items()]
            for part in ("choose", "report")
        }
    lines = ["| events by | F1 by collars | by intersection | by segments | error of starts | PSDS 1 | PSDS 2 |"]
    lines.append("|---|---|---|---|---|---|---|")
    for side, recordings in sides.items():
        found = reported(recordings["choose"], recordings["report"])
        shares = [f"{100 * found[way]['f1']:.1f} %" for way in ("collars", "intersection", "segments")]
        lines.append(f"| {side} | {' | '.join(shares)} | " + " | ".join(f"{found[key]:.3f}" for key in COLUMNS) + " |")
    print(table := "\n".join(lines))
    return table


def read_patches(folder: Path, part: str) -> dict[str, dict[str, np.ndarray]]:
    """Start and end in seconds and vectors of the patches' columns, by recording."""
    table = folder / f"patches_{part}.parquet"
    options = ["--model", str(folder / "model"), "--output", str(table), "--level", "patch"]
    if embed.main([str(folder / part), *options, "--window", WINDOW, "--hop", HOP]):
        raise DataError(f"{folder / part} cannot be embedded.")
    rows = pq.read_table(table)
    vectors = np.stack(rows["embedding"].to_numpy()).astype(np.float32)
    times = np.stack([rows["start"].to_numpy(), rows["end"].to_numpy()], axis=1)
    paths = np.array(rows["path"].to_pylist())
    return {path: {"times": times[paths == path], "vectors": vectors[paths == path]} for path in np.unique(paths)}


def gather(
    patches: Mapping[str, Mapping[str, np.ndarray]], truth: Annotations, names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and for each whether its middle lies in an event of each label."""
    targets = []
    for path, rows in patches.items():
        middles = rows["times"].mean(axis=1)
        own = np.zeros((len(middles), len(names)), dtype=bool)
        for start, end, label in truth[path]:
            own[(middles >= start) & (middles < end), names.index(label)] = True
        targets.append(own)
    return np.concatenate([rows["vectors"] for rows in patches.values()]), np.concatenate(targets)


def to_recording(
    path: str,
    rows: Mapping[str, np.ndarray],
    truth: Annotations,
    names: list[str],
    predict: Callable[[np.ndarray], np.ndarray],
) -> ScoredRecording:
    """A timeline with a row from each start of a patch to the next, of the mean scores of those that cover it."""
    scores, times = predict(rows["vectors"]), rows["times"]
    edges = np.unique((times * RATE).round().astype(np.int64))
    sums, counts = np.zeros((len(edges) - 1, len(names))), np.zeros((len(edges) - 1, 1))
    for (first, last), each in zip(np.searchsorted(edges, (times * RATE).round()), scores):
        sums[first:last] += each
        counts[first:last] += 1
    timeline = Timeline(edges, (sums / np.maximum(counts, 1)).astype(np.float32), names, RATE)
    events = [Event(label, start, min(end, timeline.seconds), 1.0) for start, end, label in sorted(truth[path])]
    return ScoredRecording(path, events, [], timeline)


def reported(chosen_on: list[ScoredRecording], reported_on: list[ScoredRecording]) -> dict:
    """What events are worth in recordings that did not choose their thresholds and lengths."""
    labels, criteria = choose_labels(chosen_on, None), Criteria()
    options = choose_options(chosen_on, labels, criteria)
    after = [replace(each, found=each.timeline.find_events(**vars(options))) for each in reported_on]
    return score(after, labels, criteria)


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
