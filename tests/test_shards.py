"""Shards and lists of sound files: the clips of a folder a class, as a table and as a stream, wherever they lie."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread

import fsspec
import pandas as pd
import pytest
import soundfile
import torch
from datasets import Audio, ClassLabel, Dataset
from helpers import decoded

from modeling_ast.data import shards
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.labels import DataError, read_label_table
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.sources import load_splits
from modeling_ast.data.streams import load_streamed_splits

NAMES = ["hiss", "hum"]
SPLITS = ("train", "validation", "test")
Clips = dict[str, list[tuple[str, bytes, str]]]  # name, content and label of each, by split


def make_clips(suffix: str = "wav", count: int = 6) -> Clips:
    """Each with a level of its own to be told by."""
    clips = {split: [] for split in SPLITS}
    for place, split in enumerate(SPLITS):
        for number in range(count):
            content, samples = io.BytesIO(), torch.linspace(-1, 1, 1600) * (count * place + number + 1) / 100
            soundfile.write(content, samples.numpy(), 16000, format=suffix.upper())
            clips[split].append((f"{split}_{number}", content.getvalue(), NAMES[number % 2]))
    return clips


def write_classes(folder: Path, clips: Clips, suffix: str = "wav") -> str:
    for split, each in clips.items():
        for name, content, label in each:
            path = folder / split / label / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return str(folder)


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


LABELS = {
    "cls": lambda label: str(NAMES.index(label)).encode(),
    "txt": str.encode,
    "json": lambda label: json.dumps({"label": label, "seconds": 0.1}).encode(),
}


def write_shards(folder: Path, clips: Clips, kind: str = "cls", suffix: str = "wav") -> str:
    """Two of them a split."""
    for split, each in clips.items():
        for shard in range(2):
            files = []
            for name, content, label in each[shard::2]:
                files += [(f"./{name}.{suffix}", content), (f"./{name}.{kind}", LABELS[kind](label))]
            write_tar(folder / f"{split}-{shard:04}.tar", files)
    return str(folder)


LISTS = {"csv": {"index": False}, "json": {"orient": "records", "lines": True}, "parquet": {}}


def write_audio_folder(folder: Path, clips: Clips, kind: str = "csv") -> str:
    for split, each in clips.items():
        rows = []
        for name, content, label in each:
            path = folder / split / "part" / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            rows.append({"file_name": f"part/{name}.wav", "label": label})
        path = folder / split / f"metadata.{'jsonl' if kind == 'json' else kind}"
        getattr(pd.DataFrame(rows), f"to_{kind}")(path, **LISTS[kind])
    return str(folder)


@pytest.fixture
def label_file(tmp_path) -> str:
    path = tmp_path / "labels.csv"
    path.write_text("index,display_name\n0,hiss\n1,hum\n")
    return str(path)


def load(name: str, streaming: bool, multi_label: bool = False, **settings) -> AudioSplits:
    if streaming:
        return load_streamed_splits(DataArguments(name, streaming=True, **settings), multi_label)
    return load_splits(name, multi_label=multi_label, **settings)


def heard(splits: AudioSplits) -> dict[str, list[tuple]]:
    """Label and samples of each clip, by split."""
    return {name: sorted((row["labels"], row["waveform"].tolist()) for row in decoded(rows)) for name, rows in splits}


WRITERS = {
    "tar with cls": (write_shards, {}, {"audio_column_name": "wav", "label_column_name": "cls"}),
    "tar with txt": (write_shards, {"kind": "txt"}, {"audio_column_name": "wav", "label_column_name": "txt"}),
    "tar with json": (write_shards, {"kind": "json"}, {"audio_column_name": "wav", "label_column_name": "json.label"}),
    "metadata.csv": (write_audio_folder, {}, {}),
    "metadata.jsonl": (write_audio_folder, {"kind": "json"}, {}),
    "metadata.parquet": (write_audio_folder, {"kind": "parquet"}, {}),
}
WAYS = pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])


@pytest.mark.parametrize("from_the_hub", [False, True], ids=["local", "by its name"])
@pytest.mark.parametrize("write, kinds, settings", WRITERS.values(), ids=WRITERS)
@WAYS
def test_clips_are_those_of_a_folder_a_class(
    tmp_path, label_file, monkeypatch, streaming, write, kinds, settings, from_the_hub
):
    clips = make_clips()
    expected = heard(load(write_classes(tmp_path / "classes", clips), False, label_file=label_file))
    name = write(tmp_path / "data", clips, **kinds)
    if from_the_hub:  # `datasets` finds the builder by what lies there, as it does for a folder
        find, folder, name = shards.load_dataset_builder, name, "some/sounds"
        monkeypatch.setattr(shards, "load_dataset_builder", lambda _, config_name: find(folder, config_name))
    found = heard(load(name, streaming, label_file=label_file, **settings))
    assert found == expected and [len(rows) for rows in found.values()] == [6, 6, 6]


@WAYS
def test_other_formats_in_a_tar_are_columns_of_their_own(tmp_path, label_file, streaming):
    clips = make_clips("flac")
    expected = heard(load(write_classes(tmp_path / "classes", clips, "flac"), False, label_file=label_file))
    name, columns = write_shards(tmp_path / "data", clips, suffix="flac"), {"audio_column_name": "flac"}
    assert heard(load(name, streaming, label_file=label_file, label_column_name="cls", **columns)) == expected
    with pytest.raises(DataError, match="expected a column 'audio', got flac, cls, __key__, __url__"):
        load(name, streaming, label_file=label_file, label_column_name="cls")


def test_a_table_tells_its_labels_itself(tmp_path):
    assert load(write_audio_folder(tmp_path / "a", make_clips()), False).label_names == NAMES
    columns = {"audio_column_name": "wav", "label_column_name": "cls"}
    assert load(write_shards(tmp_path / "b", make_clips()), False, **columns).label_names == ["0", "1"]


def test_changed_shards_are_read_again(tmp_path):
    columns = {"audio_column_name": "wav", "label_column_name": "cls"}
    assert len(load(write_shards(tmp_path, make_clips()), False, **columns).train) == 6
    assert len(load(write_shards(tmp_path, make_clips(count=8)), False, **columns).train) == 8


@pytest.mark.slow
def test_shards_are_copied_once(tmp_path):
    columns = {"audio_column_name": "wav", "label_column_name": "cls"}
    folder = write_shards(tmp_path, make_clips())
    program = (
        "import sys; from modeling_ast.data.sources import load_splits\n"
        f"splits = load_splits(sys.argv[1], **{columns})\n"
        "print([rows.cache_files for _, rows in splits])"
    )
    command = [sys.executable, "-c", program, folder]
    first, again = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == again and first.count("arrow") == 3


def break_tar(path: Path) -> None:
    """Within a sound."""
    path.write_bytes(path.read_bytes()[:4000])


def end_after_a_clip(path: Path) -> None:
    """Where Python's tarfile takes what is there for all that there was."""
    with tarfile.open(path) as tar:
        path.write_bytes(path.read_bytes()[: tar.getmembers()[2].offset])


SOUND = make_clips()["train"][0][1]
BROKEN = {
    "cut off": break_tar,
    "cut off after a clip": end_after_a_clip,
    "no tar": lambda path: path.write_bytes(b"nothing of the kind" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "no number": lambda path: write_tar(path, [("a.wav", SOUND), ("a.cls", b"hum")]),
    "one name twice": lambda path: write_tar(path, [("a.wav", SOUND), ("a.wav", SOUND), ("a.cls", b"1")]),
    "no label": lambda path: write_tar(path, [("a.wav", SOUND)]),
    "-1": lambda path: write_tar(path, [("a.wav", SOUND), ("a.cls", b"-1")]),
    "of other kinds": lambda path: write_tar(path, [("a.wav", SOUND), ("b.cls", b"1")]),
}


@pytest.mark.parametrize("shard", ["train-0000.tar", "train-0001.tar"])
@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
@WAYS
def test_a_broken_tar_is_one_sentence(tmp_path, label_file, streaming, spoil, shard):
    name = write_shards(tmp_path / "data", make_clips())
    spoil(tmp_path / "data" / shard)
    columns = {"audio_column_name": "wav", "label_column_name": "cls"}
    with pytest.raises(DataError) as caught:
        list(load(name, streaming, label_file=label_file, **columns).train)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@WAYS
def test_tars_without_clips_are_one_sentence(tmp_path, label_file, streaming):
    columns = {"audio_column_name": "wav", "label_column_name": "cls"}
    with pytest.raises(DataError, match="cannot be"):
        load(write_shards(tmp_path / "data", dict.fromkeys(SPLITS, [])), streaming, label_file=label_file, **columns)


@WAYS
def test_a_list_that_says_which_part_of_a_file_is_a_clip_is_refused(tmp_path, label_file, streaming):
    name = write_audio_folder(tmp_path / "data", make_clips())
    for split in SPLITS:
        path = tmp_path / "data" / split / "metadata.csv"
        path.write_text("file_name,label,start_time\n" + path.read_text().partition("\n")[2].replace("\n", ",0.5\n"))
    with pytest.raises(DataError, match=r"which part of a file is the clip \(start_time\)"):
        load(name, streaming, label_file=label_file)


def packed(clips: Clips, place: int | None = None, content: bytes = b"") -> Clips:
    """Each compressed, but for the one in a place of the training clips."""
    clips = {split: [(name, gzip.compress(c), label) for name, c, label in each] for split, each in clips.items()}
    if place is not None:
        name, _, label = clips["train"][place]
        clips["train"][place] = (name, content, label)
    return clips


SPOILT = {
    "bomb": (gzip.compress(bytes(4000)), "bytes when unpacked, got more"),
    "cut": (gzip.compress(b"x")[:-9], "cannot be read"),
}


@WAYS
def test_compressed_members_are_unpacked(tmp_path, label_file, streaming):
    clips = make_clips()
    settings = {"audio_column_name": "wav.gz", "label_column_name": "cls", "label_file": label_file}
    found = load(write_shards(tmp_path / "shards", packed(clips), suffix="wav.gz"), streaming, **settings)
    expected = load_splits(write_classes(tmp_path / "folder", clips))
    assert heard(found) == heard(expected)


@pytest.mark.parametrize("place", [0, 5], ids=["first", "last"])
@pytest.mark.parametrize("spoilt", SPOILT)
@WAYS
def test_a_compressed_member_is_no_bomb(tmp_path, label_file, streaming, spoilt, place, monkeypatch):
    monkeypatch.setattr(shards, "MAX_UNPACKED_BYTES", 3999)
    content, words = SPOILT[spoilt]
    folder = write_shards(tmp_path / "shards", packed(make_clips(), place, content), suffix="wav.gz")
    with pytest.raises(DataError, match=words):
        splits = load(folder, streaming, audio_column_name="wav.gz", label_column_name="cls", label_file=label_file)
        list(splits.train)


def test_a_compressed_file_of_a_list_is_no_bomb(tmp_path, monkeypatch):
    for place, size in enumerate((3000, 4000)):
        path = tmp_path / f"{place}.wav.gz"
        path.write_bytes(gzip.compress(bytes(size)))
    monkeypatch.setattr(shards, "MAX_UNPACKED_BYTES", 3999)
    assert len(shards._read(f"gzip://0.wav::{tmp_path / '0.wav.gz'}")["bytes"]) == 3000
    with pytest.raises(DataError, match="1.wav.gz: expected at most .* bytes when unpacked, got more"):
        shards._read(f"gzip://1.wav::{tmp_path / '1.wav.gz'}")


@WAYS
def test_a_tar_leads_nowhere_outside_itself(tmp_path, label_file, streaming):
    """Links in it are no clips, and names are names."""
    name = write_shards(tmp_path / "data", make_clips())
    secret = tmp_path / "secret.wav"
    secret.write_bytes(SOUND)
    with tarfile.open(tmp_path / "data" / "train-0000.tar", "a") as tar:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        for suffix, content in (("wav", SOUND), ("cls", b"1")):
            member = tarfile.TarInfo(f"../../outside.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    columns = {"audio_column_name": "wav", "label_column_name": "cls"}
    splits = load(name, streaming, label_file=label_file, **columns)
    assert len(heard(splits)["train"]) == 7 and not list(tmp_path.parent.glob("outside*"))


@pytest.mark.parametrize("way", ["../secret.wav", "/etc/hostname", "file:///etc/hostname", "nothing.wav"])
@WAYS
def test_a_list_leads_nowhere_outside_its_folder(tmp_path, label_file, streaming, way):
    name = write_audio_folder(tmp_path / "data", make_clips())
    (tmp_path / "data" / "secret.wav").write_bytes(SOUND)
    with open(tmp_path / "data" / "train" / "metadata.csv", "a", encoding="utf-8") as file:
        file.write(f"{way},hum\n")
    with pytest.raises(DataError, match="cannot be read"):
        list(load(name, streaming, label_file=label_file).train)


# Elsewhere than on this disk


def write_parquet(folder: Path, clips: Clips, shards: int = 2) -> str:
    """As the Hub has them."""
    folder.mkdir()
    for split, each in clips.items():
        for shard in range(shards):
            rows = [
                {"audio": {"bytes": content, "path": name}, "label": label}
                for name, content, label in each[shard::shards]
            ]
            table = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
            table = table.cast_column("label", ClassLabel(names=NAMES))
            table.to_parquet(folder / f"{split}-{shard:05}-of-{shards:05}.parquet")
    return str(folder)


class Server(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_files_that_do_not_tell_when_they_change_are_read_anew():
    disk = fsspec.filesystem("memory")

    def write(numbers: list[int]) -> None:
        with disk.open("/changing/train-0.parquet", "wb") as file:
            pd.DataFrame({"number": numbers}).to_parquet(file)

    def read() -> list[int]:
        builder = shards.find_builder("memory://changing", Path("changing"), None, None)
        stream = builder.as_streaming_dataset()["train"]
        return shards.keep(stream, "changing", shards.version_of(builder))["number"][:]

    write([1, 2])
    assert read() == [1, 2]
    write([3, 4])
    assert read() == [3, 4]
    disk.rm("/changing", recursive=True)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Addresses of a folder with shards of Parquet and one of tar archives, in several file systems."""
    root = tmp_path_factory.mktemp("places")
    write_parquet(root / "parquet", make_clips())
    write_shards(root / "tar", make_clips())
    (root / "parquet" / ".train-00002-of-00002.parquet").write_bytes(b"PAR1")  # hidden, and of no data set
    memory = fsspec.filesystem("memory")
    for path in root.rglob("*.[pt]*"):
        memory.pipe(f"/bucket/{path.relative_to(root)}", path.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(root)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "folder": str(root),
        "file": f"file://{root}",
        "memory": "memory://bucket",
        "http": f"http://127.0.0.1:{server.server_port}",
    }
    server.shutdown()
    server.server_close()
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "place, pattern",
    [
        ("folder", "parquet/*.parquet"),
        ("memory", "parquet/"),
        *(
            pytest.param(place, pattern, marks=pytest.mark.slow)
            for place, pattern in product(
                ("folder", "file", "memory", "http"), ("parquet/*.parquet", "tar/*.tar", "parquet/")
            )
        ),
    ],
)
@WAYS
def test_clips_are_those_of_the_folder_wherever_they_lie(places, label_file, monkeypatch, streaming, place, pattern):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # of a server of the test's own
    columns = {"audio_column_name": "wav", "label_column_name": "cls"} if "tar" in pattern else {}
    splits = load(f"{places[place]}/{pattern}", streaming, label_file=label_file, **columns)
    expected = load(f"{places['folder']}/parquet", False)
    assert heard(splits) == heard(expected)


@WAYS
def test_an_address_without_shards_is_one_sentence(places, tmp_path, streaming):
    (tmp_path / "clips.csv").write_text("audio,label\na.wav,hum\n")
    for name, words in (
        (f"{places['memory']}/nothing", "expected Parquet files or tar archives, found none"),
        (f"{places['folder']}/parquet/other-*.parquet", "expected Parquet files or tar archives, found none"),
        (f"file://{tmp_path}/clips.csv", "expected Parquet files or tar archives, found none"),
        ("nowhere://bucket/shards", "Protocol not known: nowhere"),
        ("gdrive://bucket/shards", "gdrive"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            load(name, streaming)
        assert "\n" not in str(caught.value) and name in str(caught.value)


class NoKeysError(Exception):
    """As `botocore` has one of its own."""


@WAYS
def test_what_a_file_system_raises_is_one_sentence(places, monkeypatch, streaming):
    def refuse(*_, **__):
        raise NoKeysError("Unable to locate\ncredentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", refuse)
    with pytest.raises(DataError, match=r"memory://bucket: cannot be read \(Unable to locate credentials\)"):
        load(places["memory"], streaming)


def test_a_pattern_may_name_the_clips_to_choose_on(places):
    folder = f"{places['folder']}/parquet"
    few = load(f"{folder}/train-00000-*.parquet", False, validation_file=f"{folder}/test-*.parquet")
    assert (len(few.train), len(few.validation)) == (3, 6)
    with pytest.raises(DataError, match="validation_file to name the files of one split, got test, train, validation"):
        load(f"{folder}/train-*.parquet", False, validation_file=f"{folder}/*-00000-*.parquet")


def test_two_folders_of_one_name_have_clips_of_their_own(tmp_path):
    """Also with cards, by which `datasets` would take them for one."""
    found = []
    for parent, count in (("a", 4), ("b", 6)):
        (tmp_path / parent).mkdir()
        folder = write_parquet(tmp_path / parent / "sounds", make_clips(count=count))
        files = [{"split": split, "path": f"{split}-*.parquet"} for split in SPLITS]
        card = f"---\nconfigs: {json.dumps([{'config_name': 'default', 'data_files': files}])}\n---\n"
        (tmp_path / parent / "sounds" / "README.md").write_text(card)
        found.append([len(rows) for _, rows in load(folder, False)])
    assert found == [[4, 4, 4], [6, 6, 6]]


# Splits by other names


MIDS = read_label_table("audioset").mids[:3]


def write_audioset(folder: Path) -> str:
    """As the Hub has it: folders of Parquet files, and lists of mids."""
    for place, split in enumerate(("bal_train", "unbal_train", "eval")):
        (folder / "data" / split).mkdir(parents=True)
        for shard in range(2):
            rows = [
                {
                    "video_id": f"{split}-{number}",
                    "audio": {"bytes": content, "path": f"{name}.wav"},
                    "labels": [MIDS[number % 3], MIDS[(number + place) % 3]][: 1 + number % 2],
                    "human_labels": ["Speech"],
                }
                for number, (name, content, _) in enumerate(make_clips()[SPLITS[place]])
                if number % 2 == shard
            ]
            table = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
            table.to_parquet(folder / "data" / split / f"{shard:02}.parquet")
    return f"{folder}/data/*/*.parquet"


AUDIOSET = {"label_file": "audioset", "label_column_name": "labels", "validation_split_name": "eval"}


@pytest.mark.parametrize("train, sizes", [("bal_train", [6, 6]), ("bal_train+unbal_train", [12, 6])])
@WAYS
def test_keys_say_which_split_trains_and_which_chooses(tmp_path, monkeypatch, streaming, train, sizes):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    name = write_audioset(tmp_path / "audioset")
    splits = load(name, streaming, multi_label=True, train_split_name=train, **AUDIOSET)
    assert [len(list(rows)) for _, rows in splits] == sizes and len(splits.label_names) == 527
    numbers = read_label_table("audioset").index_of()
    expected = [[MIDS[number % 3], MIDS[(number + 2) % 3]][: 1 + number % 2] for number in (0, 2, 4, 1, 3, 5)]
    found = [row["labels"] for row in splits.validation]
    assert found == [[numbers[mid] for mid in mids] for mids in expected]


def test_a_card_may_call_them_train_and_test(tmp_path):
    write_audioset(tmp_path / "audioset")
    files = [{"split": "train", "path": "data/bal_train/*.parquet"}, {"split": "test", "path": "data/eval/*.parquet"}]
    card = f"---\nconfigs: {json.dumps([{'config_name': 'balanced', 'data_files': files}])}\n---\n"
    (tmp_path / "audioset" / "README.md").write_text(card)
    settings = AUDIOSET | {"validation_split_name": "test"}
    splits = load(str(tmp_path / "audioset"), False, multi_label=True, **settings)
    assert [(name, len(rows)) for name, rows in splits] == [("train", 6), ("validation", 6)]


def test_splits_that_nobody_asks_for_are_not_read(tmp_path):
    """Of AudioSet they are a hundred times as much."""
    name = write_audioset(tmp_path / "audioset")
    for path in (tmp_path / "audioset" / "data" / "unbal_train").iterdir():
        path.write_bytes(b"PAR1")
    assert len(load(name, False, multi_label=True, train_split_name="bal_train", **AUDIOSET).train) == 6


@WAYS
def test_a_key_that_names_no_split_is_one_sentence(tmp_path, streaming):
    name = write_audioset(tmp_path / "audioset")
    with pytest.raises(DataError, match="expected a split called balanced, got bal_train, eval, unbal_train"):
        load(name, streaming, multi_label=True, train_split_name="bal_train+balanced", **AUDIOSET)
    with pytest.raises(ValueError, match="Expected splits of their own to train, choose and report on"):
        load(name, streaming, train_split_name="bal_train+eval", **AUDIOSET)


def test_lists_and_folders_of_classes_have_no_other_names_for_splits(tmp_path):
    with pytest.raises(DataError, match="train_split_name has no effect on lists and on a folder a class"):
        load(write_classes(tmp_path / "classes", make_clips()), False, train_split_name="x")
