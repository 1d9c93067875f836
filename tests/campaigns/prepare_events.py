"""Make clips of events to train on, and clips of background, from the manifest of a data set with folds or splits.

    python tests/campaigns/prepare_events.py data/esc10.csv --clips_dir CLIPS --output TABLE.csv

Of each clip the longest stretch in which it sounds is kept (clips are often padded with silence), at one level. To
them come clips of steady noise and of silence with the label `background`, so that a model learns what nothing is. The
other columns of the manifest stay, such as `fold`; background is spread over their values.
"""

import argparse
import sys
from pathlib import Path

import pandas
import soundfile
import torch
from splicing import BACKGROUND, background_noise, set_level, sounding_part
from tqdm.auto import tqdm

from modeling_ast import load_waveform
from modeling_ast.audio import AudioError
from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError, read_rows
from modeling_ast.data.prepare import summarize, write_manifest

SAMPLING_RATE = 16000
LEVEL_DB = -25.0


def main(argv: list[str] | None = None) -> Path:
    """Write clips and their manifest.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        Path of the manifest.

    Raises:
        DataError, AudioError: A manifest or a clip that cannot be used.
    """
    args = parse_arguments(argv)
    columns, rows = read_manifest(args.manifest)
    clips_dir = args.clips_dir.resolve()
    clips_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (path, *others) in enumerate(tqdm(rows, desc="Cutting clips")):
        part = sounding_part(load_waveform(path, SAMPLING_RATE), SAMPLING_RATE)
        name = clips_dir / f"{number:06d}_{Path(path).stem}.flac"
        written.append((write(name, set_level(part, LEVEL_DB)), *others))
    generator = torch.Generator().manual_seed(args.seed)
    parts = sorted({tuple(others[1:]) for _, *others in rows})
    for number in range(args.num_background):
        noise = background_noise(round(args.background_seconds * SAMPLING_RATE), generator)
        if number // len(parts) % 3 == 2:  # of each part a third is near-silence
            noise = set_level(noise, -75 + 10 * torch.rand((), generator=generator).item())
        name = clips_dir / f"{BACKGROUND}_{number:04d}.flac"
        written.append((write(name, noise), BACKGROUND, *parts[number % len(parts)]))
    manifest = pandas.DataFrame(written, columns=columns)
    write_manifest(args.output, manifest)
    print(f"Wrote {args.output}, {len(written):,} clips:\n{summarize(manifest)}")
    return args.output


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "manifest", type=Path, help="CSV file with the columns audio and label, as `modeling-ast prepare` writes"
    )
    parser.add_argument("--clips_dir", type=Path, required=True, help="folder for the clips")
    parser.add_argument("--output", type=Path, required=True, help="manifest of the clips")
    parser.add_argument("--num_background", type=int, default=100, help="clips of background (default: %(default)s)")
    parser.add_argument("--background_seconds", type=float, default=4.0, help="their length (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the background (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.num_background < 0 or args.background_seconds < 0.5:
        parser.error("Expected --num_background of at least 0 and --background_seconds of at least 0.5.")
    return args


def read_manifest(path: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows, audio and label first, with absolute paths."""
    lines = read_rows(path)
    _, names = next(lines, (0, []))
    rows = [dict(zip(names, row)) for _, row in lines]
    if not {"audio", "label"} <= set(names):
        raise DataError(f"{path}: expected the columns audio and label, got {', '.join(names) or 'an empty file'}.")
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    columns = ["audio", "label", *(name for name in names if name not in ("audio", "label"))]
    folder = path.resolve().parent
    return columns, [(str(folder / row["audio"]), *(row[name] for name in columns[1:])) for row in rows]


def write(path: Path, waveform: torch.Tensor) -> str:
    """A clip as FLAC."""
    with written_beside(path) as unfinished:
        soundfile.write(unfinished, waveform.clamp(-1, 1).numpy(), SAMPLING_RATE, subtype="PCM_16")
    return str(path)


if __name__ == "__main__":
    try:
        main()
    except (DataError, AudioError, OSError) as error:
        sys.exit(f"error: {error}")
