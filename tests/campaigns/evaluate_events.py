"""Measure how well a model's timeline finds events: in a long recording spliced from the held-out clips of a recipe.

    python tests/campaigns/evaluate_events.py outputs/esc10_events --recipe configs/esc10_events.yaml

The clips follow one another with silence and noise between them, so that what sounds, and when, is known. Reported are
precision, recall and F1 of the events and the error of their onsets, beside those of a plain energy gate. The output
folder gets the recording, the true and the found events as Audacity labels, a picture, and the figures as JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from energy_gate import best_energy_gate, event_scores
from splicing import BACKGROUND, sounding_part, splice

from modeling_ast.data.classifiers import label_order
from modeling_ast.data.decoding import decode
from modeling_ast.data.recipes import RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.inference.figures import may_fail
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline, audio_tagger
from modeling_ast.inference.plots import plot_timeline
from modeling_ast.inference.timeline import Event, Timeline, audacity_labels

GATE_LEVELS_DB = range(-70, -10)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Splice, hear, compare and report.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The figures of the model with its labels, of the model without them, and of the gate.

    Raises:
        ModelError, RecipeError, DataError, AudioError: A model, arguments, a data set or a sound file that cannot be
            used.
    """
    args, keys = parse_command_line(argv)
    _, data_args, _ = parse_data_arguments(args.recipe, keys, "a spliced recording")
    classifier = audio_tagger(args.model)
    rate, splits = classifier.feature_extractor.sampling_rate, read_splits(data_args, multi_label=False)
    try:
        windows = classifier.window_keywords(args.window, args.hop)
        label_order(classifier.model.config.id2label, splits.label_names)  # which says what differs
    except ValueError as error:
        raise RecipeError(f"{args.model} cannot be used: {error}") from error
    recording, truth = make_recording(splits, rate, args)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "recording.flac"
    soundfile.write(path, recording.numpy(), rate)
    timeline = classifier(str(path), batch_size=32, return_timeline=True, **windows)["timeline"]
    lengths = {"min_seconds": args.min_seconds, "merge_seconds": args.merge_seconds}
    ignored = [label for label in (BACKGROUND,) if label in timeline.label_names]
    found = timeline.find_events(args.threshold, ignore=ignored, **lengths)
    anything = sound_of_any_kind(timeline, ignored, classifier).find_events(args.threshold, **lengths)
    level, gate = best_energy_gate(recording, rate, truth, GATE_LEVELS_DB, **lengths)

    results = {
        "timeline, with the right label": event_scores(truth, found),
        "timeline, any sound": event_scores(truth, anything, labels_must_agree=False),
        f"energy gate at {level} dB, any sound": event_scores(truth, gate, labels_must_agree=False),
    }
    report(results, truth, len(recording) / rate, args.output_dir)
    for name, events in (("true", truth), ("found", found), ("gate", gate)):
        (args.output_dir / f"{name}_events.txt").write_text(audacity_labels(events), encoding="utf-8")
    picture = args.output_dir / "timeline.png"
    with may_fail(picture):
        plot_timeline([recording], classifier.feature_extractor, timeline, found, picture)
    print(f"Everything is in {args.output_dir}.")
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This script's own arguments, and keys of the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="folder or name on the Hub")
    parser.add_argument("--recipe", required=True, help="whose held-out clips are spliced")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/events"), help="default: %(default)s")
    parser.add_argument("--num_clips", type=int, default=80, help="clips in the recording (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the recording (default: %(default)s)")
    parser.add_argument("--window", type=float, default=1.0, help="seconds heard at once (default: %(default)s)")
    parser.add_argument("--hop", type=float, default=0.1, help="seconds between windows (default: %(default)s)")
    parser.add_argument("--threshold", type=float, help="of an event (default: the model's own, else 0.5)")
    parser.add_argument("--min_seconds", type=float, default=0.8, help="shortest event (default: %(default)s)")
    parser.add_argument("--merge_seconds", type=float, default=1.0, help="longest gap closed (default: %(default)s)")
    args, keys = parser.parse_known_args(argv)
    if args.num_clips < 1:
        raise RecipeError(f"Expected num_clips of at least 1, got {args.num_clips}.")
    return args, keys


def make_recording(splits, sampling_rate: int, args: argparse.Namespace) -> tuple[torch.Tensor, list[Event]]:
    """A recording of held-out clips in a drawn order, and what is in it."""
    rows = splits.validation if splits.test is None else splits.test
    background = splits.label_names.index(BACKGROUND) if BACKGROUND in splits.label_names else None
    indices = [index for index, label in enumerate(rows["labels"]) if label != background]
    generator = torch.Generator().manual_seed(args.seed)
    order = torch.randperm(len(indices), generator=generator).tolist()[: args.num_clips]
    chosen = rows.select([indices[place] for place in order])
    clips = decode(chosen, sampling_rate, ignore_length=splits.ignore_length)
    sounds = [(sounding_part(c["waveform"], sampling_rate), splits.label_names[c["labels"]]) for c in clips]
    recording, events = splice(sounds, sampling_rate, generator)
    truth = [Event(label, start / sampling_rate, stop / sampling_rate, 1.0) for label, start, stop in events]
    return recording, truth


def sound_of_any_kind(timeline: Timeline, ignored: list[str], classifier: ASTAudioClassificationPipeline) -> Timeline:
    """How likely it is that anything happens at all, as one label."""
    names = timeline.label_names
    columns = timeline.scores[:, [index for index, name in enumerate(names) if name not in ignored]]
    # Of one softmax the labels exclude each other; sigmoids do not.
    is_multi_label = classifier.model.config.problem_type == "multi_label_classification"
    scores = columns.max(axis=1) if is_multi_label else columns.sum(axis=1)
    return Timeline(timeline.boundaries, scores[:, None], ["sound"], timeline.sampling_rate)


def report(results: dict[str, dict[str, float]], truth: list[Event], seconds: float, folder: Path) -> None:
    """Print a table and save the figures."""
    median = np.median([event.end - event.start for event in truth])
    print(f"{len(truth)} events in {seconds / 60:.1f} minutes, median length {median:.1f} s")
    print("| events | precision | recall | F1 | median onset error |\n|---|---|---|---|---|")
    for name, scores in results.items():
        cells = (f"{100 * scores[key]:.1f} %" for key in ("precision", "recall", "f1"))
        print(f"| {name} | {' | '.join(cells)} | {1000 * scores['onset_error']:.0f} ms |")
    # JSON has no NaN.
    finite = {
        name: {key: None if np.isnan(value) else value for key, value in scores.items()}
        for name, scores in results.items()
    }
    (folder / "event_results.json").write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
