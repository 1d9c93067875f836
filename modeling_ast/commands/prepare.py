"""Make a manifest, the CSV file of clips and labels that the recipes read, of ESC-50, Speech Commands or AudioSet.

    modeling-ast prepare esc50                                # fetches, unpacks, writes data/esc50.csv
    modeling-ast prepare speech_commands --source PATH/TO/speech_commands    # a local copy, where it lies
    modeling-ast prepare audioset --segments eval_segments.csv --audio_dir PATH/TO/clips --only_paper_eval \\
        --output data/audioset_eval.csv

Run it again after an interruption: it goes on from there. Clips of other rates are resampled while a model trains, or
once and for all with --flac_cache FOLDER.
"""

import argparse
import os
from collections import Counter
from pathlib import Path

import pandas

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_least
from modeling_ast.data import prepare
from modeling_ast.data.labels import DataError, read_paper_eval_ids
from modeling_ast.data.prepare import MIN_SECONDS

GOES_ON = "The same command goes on from here."
TRAIN = "accelerate launch scripts/run_audio_classification.py"
# Name of its folder and manifest, a file by which it is known, what reads it, and what trains on it.
DATA_SETS = {
    "esc50": ("esc50", "meta/esc50.csv", prepare.read_esc50, "modeling-ast folds configs/esc50.yaml"),
    "speech_commands": (
        "speech_commands_v2",
        "testing_list.txt",
        prepare.read_speech_commands,
        f"{TRAIN} configs/speech_commands_v2.yaml",
    ),
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="data_set", required=True)
    for name, (folder, *_) in DATA_SETS.items():
        command = commands.add_parser(name, doc=f"Make the manifest of {name}.")
        command.add_argument("--data_dir", type=Path, default=Path("data"), help="where to (default: %(default)s)")
        origin = command.add_mutually_exclusive_group()
        origin.add_argument("--source", type=Path, help="local copy: a folder, used where it lies, or the archive")
        origin.add_argument("--url", help="fetch from there instead; the checksum stays the same")
        command.add_argument("--output", type=Path, help=f"manifest (default: {folder}.csv in --data_dir)")
    command = commands.add_parser("audioset", doc="Make a manifest of AudioSet.")
    segments = command.add_mutually_exclusive_group(required=True)
    segments.add_argument("--segments", type=Path, help="Google's CSV file of segments")
    segments.add_argument("--json", type=Path, help="data file of the original AST")
    command.add_argument("--audio_dir", type=Path, required=True, help="folder of sound files called by their ids")
    command.add_argument("--output", type=Path, required=True, help="manifest; what is left out is listed beside it")
    command.add_argument("--split", choices=("train", "validation", "test"), help="add a column that says this")
    command.add_argument(
        "--only_paper_eval", action="store_true", help="only the 19,185 clips of the published figures"
    )
    command.add_argument("--min_seconds", type=float, default=MIN_SECONDS, help="default: %(default)s")
    for command in commands.choices.values():
        command.add_argument("--flac_cache", type=Path, metavar="FOLDER", help="write each clip once as mono FLAC")
        command.add_argument(
            "--sampling_rate",
            type=int,
            help=f"of the FLAC cache in Hz, no less than the recipe's; default: {prepare.SAMPLING_RATE}",
        )
        command.add_argument("--num_workers", type=int, default=16, help="clips at once (default: %(default)s)")
    args = parser.parse_args(argv)
    check_least(args, num_workers=1)
    if args.sampling_rate is not None and args.flac_cache is None:
        raise CommandError("--sampling_rate has no effect without --flac_cache.")
    args.sampling_rate = prepare.SAMPLING_RATE if args.sampling_rate is None else args.sampling_rate
    if args.sampling_rate not in prepare.FLAC_RATES:
        raise CommandError(f"Expected sampling_rate of 100 to 655350 Hz, as FLAC has them, got {args.sampling_rate}.")
    return args


def main(argv: list[str] | None = None) -> Path:
    """Make a manifest.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        Path of the manifest.

    Raises:
        CommandError, DataError, AudioError: Options, an archive, a folder, a list or a clip that cannot be used.
    """
    args = parse_arguments(argv)
    return prepare_audioset(args) if args.data_set == "audioset" else prepare_data_set(args)


def prepare_data_set(args: argparse.Namespace) -> Path:
    name, marker, read, command = DATA_SETS[args.data_set]
    output = args.output or args.data_dir / f"{name}.csv"
    unpacked = args.data_dir / name
    if unpacked.is_dir() and not (args.source and args.source.is_dir()):
        print(f"{unpacked} is there already, and is not unpacked again.")
    root = prepare.find_root(prepare.obtain(args.data_set, unpacked, args.source, args.url), marker).resolve()
    manifest = read(root)
    if args.flac_cache is not None:
        manifest, broken = prepare.cache_clips(manifest, root, args.flac_cache, args.num_workers, args.sampling_rate)
        if broken:
            raise broken[0][1]
    prepare.write_manifest(output, manifest)
    print(f"Wrote {output}, {len(manifest):,} clips:\n{prepare.summarize(manifest)}")
    is_the_recipes = os.path.abspath(output) == os.path.abspath(f"data/{name}.csv")
    print(f"To train: {command}" + ("" if is_the_recipes else f" --dataset_name {os.path.abspath(output)}"))
    return output


def prepare_audioset(args: argparse.Namespace) -> Path:
    segments = prepare.read_segments(args.segments) if args.segments else prepare.read_json_segments(args.json)
    paper_ids = read_paper_eval_ids()
    if args.only_paper_eval:
        segments = [segment for segment in segments if segment[0] in paper_ids]
        if not segments:
            raise DataError(f"{args.segments or args.json}: holds none of the paper's evaluation clips.")
    clips = prepare.index_clips(args.audio_dir)
    journal = args.output.with_name(f"{args.output.name}.checked")
    manifest, left_out = prepare.match_clips(segments, clips, journal, args.min_seconds, args.num_workers)
    if args.flac_cache is not None:
        cache = args.flac_cache, args.num_workers, args.sampling_rate
        manifest, broken = prepare.cache_clips(manifest, args.audio_dir.resolve(), *cache)
        left_out += [(prepare.clip_id(Path(path).stem), path, f"unreadable: {error}") for path, error in broken]
    if args.split is not None:
        manifest["split"] = args.split
    report = args.output.with_name(f"{args.output.stem}_left_out.csv")
    prepare.write_csv(report, pandas.DataFrame(left_out, columns=["id", "audio", "reason"]))
    reasons = Counter(reason.partition(":")[0] for _, _, reason in left_out)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())) or "none"
    if manifest.empty:
        raise DataError(f"No clip of {len(segments):,} can be used ({counts}; see {report}). Is --audio_dir right?")
    prepare.write_manifest(args.output, manifest)
    print(f"Wrote {args.output}, {len(manifest):,} clips:\n{prepare.summarize(manifest, ',')}")
    print(f"Left out of {len(segments):,}: {counts} (listed in {report}).")
    if several := sum(len(clips.get(name, ())) > 1 for name, _ in segments):
        print(f"{several:,} ids have several files; the first by name was taken.")
    if args.only_paper_eval:
        ids = {prepare.clip_id(Path(path).stem) for path in manifest["audio"]}
        print(f"{len(ids):,} of the paper's {len(paper_ids):,} evaluation clips are there.")
    split = args.split or ("validation" if args.only_paper_eval else "train")
    option = "--dataset_name" if split == "train" else f"--{split}_file"
    print(f"To train: {TRAIN} configs/audioset_full.yaml {option} {os.path.abspath(args.output)}")
    return args.output


if __name__ == "__main__":
    run_command("prepare")
