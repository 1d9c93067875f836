"""Train on annotated stretches of spliced recordings, choose thresholds on others, and score events on others again.

    python tests/campaigns/annotated_recordings.py data/esc10.csv outputs/annotated --run

The manifest has folds from 1 to 5, as `modeling-ast prepare esc50` makes it. The sounding parts of the clips follow
one another with silence and noise between them, in recordings with label tracks as Audacity writes them: those of
folds 1 to 3 in OUT/train, of fold 4 in OUT/choose, of fold 5 in OUT/report. OUT/recipe.yaml trains on the first, by
windows and background. With --run the commands are run; else they are told.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from prepare_events import read_manifest
from splicing import sounding_part, splice
from tqdm.auto import tqdm

from modeling_ast import load_waveform
from modeling_ast.data.clips import iterate_clips
from modeling_ast.data.labels import DataError
from modeling_ast.data.sources import load_splits
from modeling_ast.inference.timeline import Event, audacity_labels

RATE = 16000
PARTS = {"train": ("1", "2", "3"), "choose": ("4",), "report": ("5",)}
CLIPS_A_RECORDING = 20
RECIPE = """model_name_or_path: tiny224
hidden_size: 128
num_hidden_layers: 4
num_attention_heads: 4
intermediate_size: 512
max_length: 98
num_mel_bins: 64
frequency_stride: 16
time_stride: 8
mean: -5.741
std: 5.882
problem_type: multi_label_classification
dataset_name: {folder}/train
window_seconds: 1.0
background: keep
class_balanced_sampling: true
mixup_probability: 0.3
freq_mask_bins: 12
time_mask_frames: 16
output_dir: {folder}/model
do_train: true
num_train_epochs: {epochs}
global_batch_size: 32
per_device_eval_batch_size: 64
learning_rate: 7e-4
lr_scheduler_type: cosine
warmup_steps: 200
weight_decay: 0.05
max_grad_norm: 1.0
eval_strategy: epoch
save_strategy: epoch
save_total_limit: 1
load_best_model_at_end: true
metric_for_best_model: mAP
dataloader_pin_memory: false
seed: 0
"""


def main(argv: list[str] | None = None) -> list[list[str]]:
    """Splice, and run the commands or tell them.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The commands.

    Raises:
        DataError, AudioError: A manifest or a clip that cannot be used.
    """
    args = parse_arguments(argv)
    columns, rows = read_manifest(args.manifest)
    if "fold" not in columns:
        raise DataError(f"{args.manifest}: expected a column fold, got {', '.join(columns)}.")
    place = columns.index("fold")
    for number, (part, folds) in enumerate(PARTS.items()):
        own = [row for row in rows if row[place] in folds]
        write_recordings(args.output / part, own, torch.Generator().manual_seed(number))
    (args.output / "recipe.yaml").write_text(RECIPE.format(folder=args.output, epochs=args.epochs), encoding="utf-8")
    tell_what_is_read(args.output / "train")
    commands = list_commands(args.output)
    for words in commands:
        print("modeling-ast " + " ".join(words), flush=True)
        if args.run:
            subprocess.run([sys.executable, "-m", f"modeling_ast.commands.{words[0]}", *words[1:]], check=True)
    return commands


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("manifest", type=Path, help="with the columns audio, label and fold")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder")
    parser.add_argument("--epochs", type=int, default=40, help="of the training (default: %(default)s)")
    parser.add_argument("--run", action="store_true", help="train, tag, score and calibrate")
    return parser.parse_args(argv)


def write_recordings(folder: Path, rows: Sequence[tuple[str, ...]], generator: torch.Generator) -> None:
    """Recordings of the clips in a drawn order, each with its label track."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
    for start in tqdm(range(0, len(rows), CLIPS_A_RECORDING), desc=f"Splicing {folder.name}"):
        some = rows[start : start + CLIPS_A_RECORDING]
        sounds = [(sounding_part(load_waveform(path, RATE), RATE), label) for path, label, *_ in some]
        recording, spliced = splice(sounds, RATE, generator)
        path = folder / f"{start // CLIPS_A_RECORDING:03d}.flac"
        soundfile.write(path, recording.clamp(-1, 1).numpy(), RATE, subtype="PCM_16")
        events = [Event(label, first / RATE, stop / RATE, 1.0) for label, first, stop in spliced]
        path.with_suffix(".txt").write_text(audacity_labels(events), encoding="utf-8")


def tell_what_is_read(folder: Path) -> None:
    """How much of the recordings their annotated stretches are, which is all that is decoded without a background."""
    splits = load_splits(str(folder), multi_label=True, validation_fraction=0.5)
    stretches = sum(clip.read_seconds() for _, rows in splits for clip in iterate_clips(rows))
    seconds = sum(soundfile.info(path).duration for path in folder.glob("*.flac"))
    print(f"{folder}: {seconds / 60:.1f} minutes, of which {stretches / 60:.1f} minutes are annotated.")


def list_commands(folder: Path) -> list[list[str]]:
    """Training, tagging, scoring as it is, calibration by other recordings, and scoring by what that chose."""
    tags, listened = str(folder / "tags"), [str(folder / part) for part in ("choose", "report")]
    windows = ["--window", "0.99", "--hop", "0.1"]
    return [
        ["train", str(folder / "recipe.yaml")],
        ["tag", *listened, "--model", str(folder / "model"), "--output_dir", tags, *windows],
        ["score", tags, listened[1], "--pictures"],
        [
            *("calibrate", str(folder / "model"), "--results", tags),
            *("--annotations", listened[0], "--test_annotations", listened[1]),
        ],
    ]


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
