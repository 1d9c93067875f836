"""Packs a recipe's data and reads them back in every way: are labels and waveforms those that were packed?

    python tests/campaigns/compare_shards.py RECIPE OUTPUT_DIR [--formats original flac opus] [--key value ...]

Prints a row a format and way: a table and a stream of the folder, of tar archives of the same clips, and over fsspec,
from memory and by HTTP from a server of this process.
"""

import argparse
import io
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq
import torch

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands import pack
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.decoding import DecodeAudio
from modeling_ast.data.recipes import DataArguments, parse_data_arguments
from modeling_ast.data.splits import read_splits

HEADER = "| format | read as | clips | labels | waveforms | CPU s |\n| --- | --- | --- | --- | --- | --- |"
Clips = dict[str, dict[str, tuple[Any, bytes]]]  # labels and digest of the samples of each clip, by split and name


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--formats", nargs="+", choices=pack.FORMATS, default=["original", "flac"])
    args, keys = parser.parse_known_args(argv)
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    datasets.disable_progress_bars()
    model_args, data_args, _ = parse_data_arguments(args.recipe, keys, "packing", pack.KEYS)
    rate, is_multi_label = model_args.sampling_rate or 16000, model_args.problem_type.startswith("multi")
    before, found = read_splits(data_args, is_multi_label), []
    digests = digest(before, rate)
    print(HEADER)
    for form in args.formats:
        folder = args.output_dir / form
        start = time.process_time()
        pack.main([args.recipe, *keys, "--output", str(folder), "--format", form, "--shard_megabytes", "20"])
        seconds = {"packed": time.process_time() - start}
        for way, settings in ways(folder, before.label_names):
            start = time.process_time()
            after = digest(read_splits(DataArguments(**settings), is_multi_label), rate)
            seconds[way] = time.process_time() - start
            found.append({"format": form, "way": way, "clips": {name: len(clips) for name, clips in after.items()}})
            found[-1] |= compare(digests, after) | {"seconds": seconds[way]}
            row = found[-1]
            clips, labels, waveforms = sum(row["clips"].values()), row["labels"], row["waveforms"]
            print(f"| {form} | {way} | {clips:,} | {labels:,} | {waveforms:,} | {seconds[way]:.1f} |", flush=True)
        print(f"{form}: packed in {seconds['packed']:.1f} CPU s; {describe_difference(before, folder, rate)}")
    return found


def digest(splits: AudioSplits, rate: int) -> Clips:
    """By the ends of their paths, which are longer or shorter and have other suffixes elsewhere."""
    return {
        name: {
            "/".join(Path(row["path"]).with_suffix("").parts[-2:]): (
                row["labels"],
                blake2b(row["waveform"].numpy().tobytes()).digest(),
            )
            for row in map(DecodeAudio(rate).decode_row, rows)
        }
        for name, rows in splits
    }


def compare(before: Clips, after: Clips) -> dict[str, int]:
    """How many clips have the same labels, and the same samples bit for bit, in the same split."""
    pairs = [(clip, after[split].get(name)) for split, clips in before.items() for name, clip in clips.items()]
    return {
        "labels": sum(other is not None and clip[0] == other[0] for clip, other in pairs),
        "waveforms": sum(other is not None and clip[1] == other[1] for clip, other in pairs),
    }


def ways(folder: Path, label_names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is read, and how it is called in a recipe."""
    yield "table", {"dataset_name": str(folder)}
    yield "stream", {"dataset_name": str(folder), "streaming": True}
    columns = write_tars(folder, folder.with_name(f"{folder.name}_tar"), label_names)
    yield "tar, table", columns
    yield "tar, stream", columns | {"streaming": True}
    with in_memory(folder) as address:
        yield "memory://, table", {"dataset_name": address}
        yield "memory://, stream", {"dataset_name": address, "streaming": True}
    with served(folder) as address:
        yield "http://, table", {"dataset_name": address}
        yield "http://, stream", {"dataset_name": address, "streaming": True}


def write_tars(folder: Path, output: Path, label_names: list[str]) -> dict[str, str]:
    """The same clips, each with the number of its only label."""
    output.mkdir(exist_ok=True)
    for path in sorted(folder.glob("*.parquet")):
        with tarfile.open(output / f"{path.stem}.tar", "w") as tar:
            for audio, label in zip(*(column.to_pylist() for column in pq.read_table(path).columns[:2])):
                (number,) = label if isinstance(label, list) else [label]
                stem, _, suffix = audio["path"].rpartition(".")
                for name, content in ((f"{stem}.{suffix}", audio["bytes"]), (f"{stem}.cls", str(number).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    table = [f'{number},{number},"{name}"' for number, name in enumerate(label_names)]
    (output / "labels.csv").write_text("\n".join(["index,mid,display_name", *table]) + "\n", encoding="utf-8")
    columns = {"audio_column_name": suffix, "label_column_name": "cls", "label_file": str(output / "labels.csv")}
    return {"dataset_name": f"{output}/*.tar", **columns}


@contextmanager
def in_memory(folder: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.parquet"):
        memory.pipe(f"/{folder.name}/{path.name}", path.read_bytes())
    yield f"memory://{folder.name}"
    memory.rm(f"/{folder.name}", recursive=True)


class _Handler(SimpleHTTPRequestHandler):
    """With parts of files, which streams ask for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, part = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not part or not path.is_file():
            return super().do_GET()
        start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", part).groups()
        content = path.read_bytes()
        part = content[int(start) : int(end) + 1 if end else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return self.wfile.write(part)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    server.handle_error = lambda *_: None  # readers hang up when they have what they want
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def describe_difference(before: AudioSplits, folder: Path, rate: int) -> str:
    """Of held-out clips, which keep their order."""
    packed = read_splits(DataArguments(str(folder)), isinstance(before.train[0]["labels"], list))
    to_clips = partial(map, DecodeAudio(rate).decode_row)
    extractor, largest, features, is_as_long = ASTFeatureExtractor(sampling_rate=rate), 0.0, [], True
    for row, other in zip(to_clips(before.test), to_clips(packed.test)):
        clip, changed = row["waveform"], other["waveform"]
        is_as_long &= len(clip) == len(changed)
        largest = max(largest, (clip - changed).abs().max().item())
        features.append((extractor.fbank([clip])[0] - extractor.fbank([changed])[0]).abs().mean())
    return (
        f"{'as long, ' if is_as_long else 'NOT as long, '}samples within {largest:.2g}, log-mel features "
        f"{torch.stack(features).mean():.2g} apart on average (of {len(features)} test clips)"
    )


if __name__ == "__main__":
    main()
