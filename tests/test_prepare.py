"""What is published becomes a manifest that trains, and nothing of it is lost, doubled or written elsewhere."""

import hashlib
import http.server
import io
import json
import os
import re
import stat
import tarfile
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import read_csv

from modeling_ast.audio import AudioError, load_waveform, read_seconds
from modeling_ast.commands.command_options import CommandError
from modeling_ast.commands.prepare import main
from modeling_ast.data import prepare
from modeling_ast.data.download import Archive, unpack
from modeling_ast.data.labels import DataError, read_paper_eval_ids
from modeling_ast.data.sources import load_splits

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).resolve().parents[1] / "modeling_ast" / "commands" / "prepare.py"
WORDS = ("cat", "dog")


def write_clip(path: Path, seed: int = 0, samples: int = 800, sampling_rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.3, 0.3, samples), sampling_rate)
    return path


# Two data sets like the published ones, as folders and as archives


def speech_commands(folder: Path) -> Path:
    for seed, (word, number) in enumerate((word, number) for word in WORDS for number in range(4)):
        write_clip(folder / word / f"{number}_nohash_0.wav", seed)
    write_clip(folder / "_background_noise_" / "hum.wav")
    (folder / "validation_list.txt").write_text("cat/0_nohash_0.wav\ndog/0_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("cat/1_nohash_0.wav\n")
    return folder


def esc50(folder: Path) -> Path:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for number in range(9):
        name = write_clip(folder / "audio" / f"{number % 3 + 1}-{number}-A-0.wav", number, 2205, 44100).name
        rows.append(f"{name},{number % 3 + 1},0,{WORDS[number % 2]},False,{number},A")
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return folder


def tar_of(folder: Path) -> bytes:
    """As Speech Commands is packed: no folder above, names that start with a dot."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(folder, ".")
    return file.getvalue()


def zip_of(folder: Path) -> bytes:
    """As GitHub packs: one folder above."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path("ESC-50-master") / path.relative_to(folder))
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path.

    Attributes:
        supports_range: Whether it continues where it is asked to.
        cut_after: Ends the next answer after so many bytes.
        requests: The Range of each.
    """

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.supports_range, self.cut_after, self.requests = content, True, None, []
        self.url = f"http://127.0.0.1:{self.server_port}/archive"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, size, start = self.server, len(self.server.content), 0
        asked = self.headers.get("Range")
        server.requests.append(asked)
        if asked and server.supports_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        end, server.cut_after = server.cut_after, None
        self.wfile.write(server.content[start:][:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Serve a data set's archive in place of the published one."""
    servers = []

    def start(name: str, content: bytes, num_clips: int, sha256: str | None = None) -> Server:
        server = Server(content)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        known = sha256 or (hashlib.sha256(content).hexdigest() if name == "speech_commands" else None)
        archive = Archive(prepare.ARCHIVES[name].name, server.url, known, num_clips)
        monkeypatch.setitem(prepare.ARCHIVES, name, archive)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def archive_of(name: str, folder: Path) -> tuple[bytes, int]:
    if name == "esc50":
        return zip_of(esc50(folder / "published")), 9
    return tar_of(speech_commands(folder / "published")), 9


def check_rows(name: str, manifest: Path) -> None:
    """The manifest of either small data set."""
    rows = read_csv(manifest)
    if name == "esc50":
        assert {(Path(row["audio"]).name, row["label"], row["fold"]) for row in rows} == {
            (f"{number % 3 + 1}-{number}-A-0.wav", WORDS[number % 2], str(number % 3 + 1)) for number in range(9)
        }
    else:
        splits = {"0": "validation", "1": "train", "2": "train", "3": "train"}
        expected = {(f"{word}/{n}_nohash_0.wav", word, split) for word in WORDS for n, split in splits.items()}
        expected = expected - {("cat/1_nohash_0.wav", "cat", "train")} | {("cat/1_nohash_0.wav", "cat", "test")}
        assert {("/".join(Path(row["audio"]).parts[-2:]), row["label"], row["split"]) for row in rows} == expected
    assert len(rows) == len({row["audio"] for row in rows})
    assert all((manifest.parent / row["audio"]).is_file() for row in rows)


NAMES = pytest.mark.parametrize("name", ["esc50", "speech_commands"])


# Fetching


@NAMES
def test_archive_is_fetched_once_and_becomes_a_manifest(name, tmp_path, serve, capsys):
    server = serve(name, *archive_of(name, tmp_path))
    manifest = main([name, "--data_dir", str(tmp_path / "data")])
    check_rows(name, manifest)
    assert not any(row["audio"].startswith("/") for row in read_csv(manifest))  # the folder can be moved
    assert f"Wrote {manifest}" in capsys.readouterr().out
    assert main([name, "--data_dir", str(tmp_path / "data")]) == manifest
    assert server.requests == [None]
    assert "is there already, and is not unpacked again" in capsys.readouterr().out
    assert not list((tmp_path / "data").glob("*.part"))


@NAMES
@pytest.mark.parametrize("supports_range", [True, False])
def test_interrupted_download_goes_on_or_starts_again(name, supports_range, tmp_path, serve):
    server = serve(name, *archive_of(name, tmp_path))
    server.supports_range, server.cut_after = supports_range, 1000
    with pytest.raises(DataError, match="ended after 1,000 of .*Run the command again to continue"):
        main([name, "--data_dir", str(tmp_path / "data")])
    assert not (tmp_path / "data" / f"{name}.csv").exists()
    check_rows(name, main([name, "--data_dir", str(tmp_path / "data")]))
    assert server.requests == [None, "bytes=1000-"]


@pytest.mark.parametrize("size", ["all", "more"])
def test_download_interrupted_at_its_end_is_finished(size, tmp_path, serve):
    """A part that is as long as the file is taken; one that is longer is another file's."""
    content, num_clips = archive_of("speech_commands", tmp_path)
    server = serve("speech_commands", content, num_clips)
    (tmp_path / "data").mkdir()
    part = tmp_path / "data" / "speech_commands_v0.02.tar.gz.part"
    part.write_bytes(content if size == "all" else content + b"more")
    check_rows("speech_commands", main(["speech_commands", "--data_dir", str(tmp_path / "data")]))
    assert len(server.requests) == (1 if size == "all" else 2)


def test_part_of_another_file_is_found_by_the_checksum(tmp_path, serve):
    serve("speech_commands", *archive_of("speech_commands", tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "speech_commands_v0.02.tar.gz.part").write_bytes(bytes(1000))
    with pytest.raises(DataError, match="expected the SHA-256 .* run the command again"):
        main(["speech_commands", "--data_dir", str(tmp_path / "data")])
    assert not list((tmp_path / "data").iterdir())
    check_rows("speech_commands", main(["speech_commands", "--data_dir", str(tmp_path / "data")]))


def test_another_address_must_give_the_same_file(tmp_path, serve):
    server = serve("speech_commands", *archive_of("speech_commands", tmp_path), sha256="0" * 64)
    with pytest.raises(DataError, match=f"speech_commands_v0.02.tar.gz: expected the SHA-256 {'0' * 64}, got "):
        main(["speech_commands", "--data_dir", str(tmp_path / "data"), "--url", server.url + "/mirror"])
    assert not list((tmp_path / "data").iterdir())


def test_server_that_is_not_there_is_an_error_with_its_address_and_no_password(tmp_path):
    with pytest.raises(DataError, match=r"^http://127.0.0.1:9/x.zip: cannot be fetched [^?]*--source") as caught:
        main(["esc50", "--data_dir", str(tmp_path), "--url", "http://me:secret@127.0.0.1:9/x.zip?token=secret"])
    assert "secret" not in str(caught.value)


def test_archive_with_too_few_clips_is_an_error(tmp_path, serve):
    content, _ = archive_of("esc50", tmp_path)
    serve("esc50", content, 2000)
    with pytest.raises(DataError, match="expected 2,000 sound files, found 9"):
        main(["esc50", "--data_dir", str(tmp_path / "data")])


def test_published_checksum_of_speech_commands_is_that_of_torchaudio():
    speechcommands = pytest.importorskip("torchaudio.datasets.speechcommands")
    archive = prepare.ARCHIVES["speech_commands"]
    assert speechcommands._CHECKSUMS[archive.url] == archive.sha256


# Unpacking


def zip_with(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("good.wav", b"x")
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, content)
    return file.getvalue()


def tar_with(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("good.wav"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zip_with("../evil.wav"),
        zip_with("a/../../evil.wav"),
        zip_with("/tmp/evil.wav"),
        zip_with("C:\\evil.wav"),
        zip_with("evil.wav", b"/etc", stat.S_IFLNK | 0o777),
        tar_with("../evil.wav"),
        tar_with("/tmp/evil.wav"),
        tar_with("evil.wav", tarfile.SYMTYPE, "/etc/passwd"),
        tar_with("evil.wav", tarfile.SYMTYPE, "good.wav"),
        tar_with("evil.wav", tarfile.LNKTYPE, "../../evil.wav"),
        tar_with("evil.wav", tarfile.FIFOTYPE),
    ],
    ids=lambda content: "zip" if content[:2] == b"PK" else "tar",
)
def test_archive_that_leads_out_of_its_folder_writes_nothing_elsewhere(content, tmp_path):
    folder = tmp_path / "data" / "here"
    (tmp_path / "archive").write_bytes(content)
    with suppress(DataError):
        unpack(tmp_path / "archive", folder)
    assert set(tmp_path.rglob("*")) <= {tmp_path / "archive", tmp_path / "data", folder, *folder.rglob("*")}
    assert not Path("/tmp/evil.wav").exists()
    for path in folder.rglob("*"):
        assert path.resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize("kind, link", [(tarfile.SYMTYPE, "/etc/passwd"), (tarfile.FIFOTYPE, "")])
def test_archive_with_a_link_out_of_it_or_a_device_is_refused(kind, link, tmp_path):
    (tmp_path / "archive").write_bytes(tar_with("evil.wav", kind, link))
    with pytest.raises(DataError, match=r"archive: cannot be unpacked \(.*evil.wav"):
        unpack(tmp_path / "archive", tmp_path / "data" / "here")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize(
    "content, words",
    [
        (
            zip_with("a.wav", b"sound" * 99).replace(b"soundsound", b"soundSOUND", 1),
            "cannot be unpacked .Bad CRC-32",
        ),
        (tar_with("a.wav")[:-30], "cannot be unpacked"),
        (b"no archive", r"cannot be unpacked \(expected a ZIP or TAR file\)"),
    ],
    ids=["broken ZIP", "truncated TAR", "no archive"],  # the content itself holds the time at which it was made
)
def test_broken_archive_is_an_error_and_leaves_nothing_behind(content, words, tmp_path):
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(DataError, match=words):
        main(["esc50", "--source", str(tmp_path / "archive"), "--data_dir", str(tmp_path / "data")])
    assert not list((tmp_path / "data").iterdir())


# Local copies


@NAMES
@pytest.mark.parametrize("is_archive", [True, False])
def test_local_copy_is_used(name, is_archive, tmp_path):
    content, _ = archive_of(name, tmp_path)
    (tmp_path / "archive").write_bytes(content)
    source = tmp_path / ("archive" if is_archive else "published")
    manifest = main([name, "--source", str(source), "--data_dir", str(tmp_path / "data")])
    check_rows(name, manifest)
    where = tmp_path / ("data" if is_archive else "published")
    for row in read_csv(manifest):
        assert (manifest.parent / row["audio"]).resolve().is_relative_to(where)


def test_esc10_gives_the_same_rows_as_its_own_table(shared_data, tmp_path, capsys):
    manifest = main(["esc50", "--source", str(shared_data / "esc10"), "--output", str(tmp_path / "esc10.csv")])
    assert (
        manifest == tmp_path / "esc10.csv" and "fold 3: 80 clips of 10 labels, 8 clips each" in capsys.readouterr().out
    )
    folds = {"fold_column_name": "fold", "eval_fold": 3}
    found = load_splits(str(manifest), **folds)
    options = {"audio_column_name": "filename", "label_column_name": "category", "audio_dir": "../audio"}
    expected = load_splits(str(shared_data / "esc10" / "meta" / "esc50.csv"), **options, **folds)
    assert found.label_names == expected.label_names
    for (_, rows), (_, expected_rows) in zip(found, expected, strict=True):
        assert rows.to_list() == expected_rows.to_list()
    assert load_splits(str(manifest), label_file="esc50").label_names[0] == "dog"


def test_fsdd_gives_the_same_rows_as_its_folder(shared_data, tmp_path):
    folder = str((shared_data / "fsdd").resolve())  # lists name files by their places behind all links
    manifest = main(["speech_commands", "--source", folder, "--data_dir", str(tmp_path)])
    found = load_splits(str(manifest), split_column_name="split")
    expected = load_splits(folder)
    assert found.label_names == expected.label_names
    for (_, rows), (_, expected_rows) in zip(found, expected, strict=True):
        assert rows.to_list() == expected_rows.to_list()


def test_command_to_train_names_the_manifest_where_it_is_not_the_recipe_s(tmp_path, monkeypatch, capsys):
    esc50(tmp_path / "published")
    monkeypatch.chdir(tmp_path)
    main(["esc50", "--source", "published"])
    assert capsys.readouterr().out.endswith("To train: modeling-ast folds configs/esc50.yaml\n")
    main(["esc50", "--source", "published", "--output", "mine.csv"])
    assert capsys.readouterr().out.endswith(f"configs/esc50.yaml --dataset_name {tmp_path / 'mine.csv'}\n")


# FLAC cache


def test_cache_holds_each_clip_once_at_16_khz_in_the_same_folders(tmp_path):
    root = esc50(tmp_path / "published")
    arguments = ["esc50", "--source", str(root), "--data_dir", str(tmp_path), "--flac_cache", str(tmp_path / "cache")]
    rows = read_csv(main(arguments))
    for row in rows:
        assert row["audio"] == f"cache/audio/{Path(row['audio']).stem}.flac"
        info = soundfile.info(tmp_path / row["audio"])
        assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
        expected = load_waveform(root / "audio" / (Path(row["audio"]).stem + ".wav"), 16000)
        np.testing.assert_allclose(load_waveform(tmp_path / row["audio"]), expected, atol=2**-15, rtol=0)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    assert len(written) == len(rows) == 9
    removed = tmp_path / rows[4]["audio"]
    removed.unlink()
    assert read_csv(main(arguments)) == rows
    for path in (tmp_path / "cache").rglob("*.*"):
        assert (path.stat().st_mtime_ns != written[path]) == (path == removed)


def test_cache_has_the_rate_that_is_asked_for_and_is_not_mixed(tmp_path):
    root = esc50(tmp_path / "published")
    arguments = ["esc50", "--source", str(root), "--data_dir", str(tmp_path), "--flac_cache", str(tmp_path / "cache")]
    for _ in range(2):  # the second time it is there
        rows = read_csv(main([*arguments, "--sampling_rate=32000"]))
    for row in rows:
        assert soundfile.info(tmp_path / row["audio"]).samplerate == 32000
        expected = load_waveform(root / "audio" / (Path(row["audio"]).stem + ".wav"), 32000).clamp(-1, 1)
        np.testing.assert_allclose(load_waveform(tmp_path / row["audio"], 32000), expected, atol=2**-15, rtol=0)
    with pytest.raises(DataError, match="is there already, with 32000 Hz, where 16000 Hz are asked for"):
        main(arguments)


def test_interrupted_write_leaves_no_clip_that_looks_finished(tmp_path, monkeypatch):
    root = esc50(tmp_path / "published")
    arguments = ["esc50", "--source", str(root), "--data_dir", str(tmp_path), "--flac_cache", str(tmp_path / "cache")]

    def write_half(path, *args, **kwargs):
        Path(path).write_bytes(b"fLaC")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "write", write_half)
        with pytest.raises(OSError, match="no space"):
            main(arguments)
    assert not list((tmp_path / "cache").rglob("*.*")) and not (tmp_path / "esc50.csv").exists()
    assert len(read_csv(main(arguments))) == 9


def test_broken_clip_is_an_error_with_its_name(tmp_path):
    root = esc50(tmp_path / "published")
    (root / "audio" / "1-3-A-0.wav").write_text("no sound")
    with pytest.raises(AudioError, match="1-3-A-0.wav: cannot be decoded"):
        main(["esc50", "--source", str(root), "--data_dir", str(tmp_path), "--flac_cache", str(tmp_path / "cache")])


# AudioSet

# Ids as YouTube makes them: underscores and dashes anywhere, a Y in front, digits at the end.
IDS = (
    "--4gqARaEJE",
    "Yabcdefgh_1",
    "abc_efghi_0",
    "Zebra-_1234",
    "_0000000_30",
    "AudioSet_01",
    "AudioSet_02",
    "missing_one",
)
LABELS = ("/m/068hy,/m/07q6cd_,/m/0bt9lr", "/m/03l9g", "/t/dd00088,/m/09x0r")


def clips(folder: Path) -> Path:
    """A file by each way to call it; one cannot be read, and one is too short."""
    names = ("{}", "Y{}.wav", "{}_30.000.wav", "a/b/Y{}_30000_40000.flac", "c/{}_30.wav", "{}", "{}", None)
    for seed, (name, file) in enumerate(zip(IDS, names)):
        if file:
            file = file if "." in file else file + ".wav"
            write_clip(folder / file.format(name), seed, 399 if name == "AudioSet_02" else 400)
    (folder / "AudioSet_01.wav").write_text("no sound")
    (folder / "notes.txt").write_text("no clip")
    return folder


def segments_csv(folder: Path) -> list[str]:
    """As Google writes it."""
    lines = [
        "# Segments csv created Sun Mar  5 10:54:25 2017",
        "# num_ytids=8, num_segs=8, num_unique_labels=5, num_positive_labels=17",
        "# YTID, start_seconds, end_seconds, positive_labels",
        *(f'{name}, 30.000, 40.000, "{LABELS[number % 3]}"' for number, name in enumerate(IDS)),
    ]
    (folder / "segments.csv").write_text("\n".join(lines) + "\n")
    return ["--segments", str(folder / "segments.csv")]


def mangled_csv(folder: Path) -> list[str]:
    """As a spreadsheet leaves it: quotes doubled, labels over several columns, all lines of the same width."""
    lines = [
        '"# Segments csv created Sun Mar  5 10:54:25 2017",,,,,,',
        "YTID,start_seconds,end_seconds,positive_labels,,,",
    ]
    for number, name in enumerate(IDS):
        columns = [name, "30", "40", *(f' """{label}"' for label in LABELS[number % 3].split(","))]
        lines.append(",".join(columns + [""] * (7 - len(columns))))
    (folder / "mangled.csv").write_text("\r\n".join([*lines, ",,,,,,"]) + "\r\n", encoding="utf-8-sig")
    return ["--segments", str(folder / "mangled.csv")]


def original_json(folder: Path) -> list[str]:
    names = ("/elsewhere/{}_30.000.flac", "/elsewhere/Y{}.wav", "{}.wav")
    entries = [
        {"video_id": name, "wav": names[number % 3].format(name), "labels": LABELS[number % 3]}
        for number, name in enumerate(IDS)
    ]
    (folder / "eval.json").write_text(json.dumps({"data": entries}))
    return ["--json", str(folder / "eval.json")]


def audioset(folder: Path, *options: str) -> Path:
    output = folder / "out" / "audioset.csv"
    return main(["audioset", *options, "--audio_dir", str(folder / "clips"), "--output", str(output)])


@pytest.mark.parametrize("listed", [segments_csv, mangled_csv, original_json])
def test_segments_whose_clips_are_good_become_a_manifest(listed, tmp_path, capsys):
    clips(tmp_path / "clips")
    manifest = audioset(tmp_path, *listed(tmp_path))
    rows = read_csv(manifest)
    expected = ["--4gqARaEJE.wav", "YYabcdefgh_1.wav", "abc_efghi_0_30.000.wav", "YZebra-_1234_30000_40000.flac"]
    expected += ["_0000000_30_30.wav"]
    assert [Path(row["audio"]).name for row in rows] == expected
    assert [row["label"] for row in rows] == [LABELS[number % 3] for number in range(5)]
    left_out = read_csv(tmp_path / "out" / "audioset_left_out.csv")
    assert [(row["id"], re.sub(": .*", "", row["reason"])) for row in left_out] == [
        ("missing_one", "missing"),
        ("AudioSet_01", "unreadable"),
        ("AudioSet_02", "too short"),
    ]
    printed = capsys.readouterr().out
    assert "Left out of 8: 1 missing, 1 too short, 1 unreadable" in printed and "/m/03l9g 2" in printed
    splits = load_splits(str(manifest), multi_label=True, label_file="audioset", validation_fraction=0.3)
    assert len(splits.train) + len(splits.validation) == 5


def test_clips_of_a_length_can_be_asked_for(tmp_path):
    clips(tmp_path / "clips")
    assert len(read_csv(audioset(tmp_path, *segments_csv(tmp_path), "--min_seconds", "0.02"))) == 6
    with pytest.raises(DataError, match="No clip of 8 can be used .1 missing, 6 too short, 1 unreadable"):
        audioset(tmp_path, *segments_csv(tmp_path), "--min_seconds", "9")


@pytest.mark.parametrize(
    "options, command",
    [
        ([], "--dataset_name"),
        (["--split", "train"], "--dataset_name"),
        (["--split", "validation"], "--validation_file"),
        (["--split", "test"], "--test_file"),
        (["--only_paper_eval"], "--validation_file"),
    ],
)
def test_only_what_is_asked_for_is_written_and_how_to_train_is_said(options, command, tmp_path, capsys):
    clips(tmp_path / "clips")
    rows = read_csv(audioset(tmp_path, *segments_csv(tmp_path), *options))
    assert {row.get("split") for row in rows} == {options[1] if "--split" in options else None}
    printed = capsys.readouterr().out
    assert printed.endswith(f"configs/audioset_full.yaml {command} {tmp_path / 'out' / 'audioset.csv'}\n")
    if options == ["--only_paper_eval"]:
        assert "1 of the paper's 19,185 evaluation clips are there" in printed
        assert [Path(row["audio"]).stem for row in rows] == [name for name in IDS if name in read_paper_eval_ids()]


def test_first_of_several_files_of_an_id_is_taken_and_that_is_said(tmp_path, capsys):
    write_clip(clips(tmp_path / "clips") / "z" / "--4gqARaEJE_0.000.wav")
    rows = read_csv(audioset(tmp_path, *segments_csv(tmp_path)))
    assert len(rows) == 5 and rows[0]["audio"].endswith("clips/--4gqARaEJE.wav")
    assert "1 ids have several files; the first by name was taken" in capsys.readouterr().out


def test_clip_that_is_listed_twice_stands_there_twice(tmp_path):
    """Also in the cache, which two threads then fill with the same file."""
    clips(tmp_path / "clips")
    path = segments_csv(tmp_path)[1]
    with open(path, "a") as file:
        file.write(f'{IDS[0]}, 30.000, 40.000, "/m/0395lw"\n')
    rows = read_csv(audioset(tmp_path, "--segments", path, "--flac_cache", str(tmp_path / "cache")))
    assert [rows[index]["label"] for index in (0, 5)] == [LABELS[0], "/m/0395lw"]
    assert rows[0]["audio"] == rows[5]["audio"] and len(list((tmp_path / "cache").rglob("*.*"))) == 5


def test_interrupted_check_goes_on_where_it_ended(tmp_path, monkeypatch):
    clips(tmp_path / "clips")

    def interrupt(items, **kwargs):
        for number, item in enumerate(items):
            if kwargs["desc"] == "Checking clips" and number == 3:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "tqdm", interrupt)
        with pytest.raises(KeyboardInterrupt):
            audioset(tmp_path, *segments_csv(tmp_path))
    read = []
    monkeypatch.setattr(prepare, "read_seconds", lambda path: read.append(path) or read_seconds(path))
    assert len(read_csv(audioset(tmp_path, *segments_csv(tmp_path)))) == 5
    assert len(read) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audioset.csv", "audioset_left_out.csv"]


def test_clips_that_only_decoding_shows_to_be_broken_are_left_out_of_the_cache(tmp_path):
    path = write_clip(clips(tmp_path / "clips") / "--4gqARaEJE.wav", samples=8000)
    path.write_bytes(path.read_bytes()[:4000])  # the header is whole
    manifest = audioset(tmp_path, *segments_csv(tmp_path), "--flac_cache", str(tmp_path / "cache"))
    rows = read_csv(manifest)
    assert [os.path.relpath(row["audio"], tmp_path / "cache") for row in rows] == [
        "YYabcdefgh_1.flac",
        "abc_efghi_0_30.000.flac",
        "a/b/YZebra-_1234_30000_40000.flac",
        "c/_0000000_30_30.flac",
    ]
    (truncated,) = (row for row in read_csv(tmp_path / "out" / "audioset_left_out.csv") if row["id"] == "--4gqARaEJE")
    assert truncated["reason"].startswith("unreadable: ") and "truncated" in truncated["reason"]


# What is wrong is said


def listed_as(text: str):
    def write(folder: Path) -> list[str]:
        clips(folder / "clips")
        (folder / "segments.csv").write_text(text)
        return ["audioset", "--segments", str(folder / "segments.csv"), "--audio_dir", str(folder / "clips")]

    return write


def esc50_with(change):
    def write(folder: Path) -> list[str]:
        change(esc50(folder / "esc50"))
        return ["esc50", "--source", str(folder / "esc50")]

    return write


def two_endings(folder: Path) -> list[str]:
    write_clip(speech_commands(folder / "words") / "cat" / "2_nohash_0.flac")
    return ["speech_commands", "--source", str(folder / "words"), "--flac_cache", str(folder / "cache")]


def without_list(folder: Path) -> list[str]:
    (speech_commands(folder / "words") / "validation_list.txt").unlink()
    return ["speech_commands", "--source", str(folder / "words")]


GOOD_LINE = f'{IDS[0]}, 30.000, 40.000, "/m/03l9g"\n'


@pytest.mark.parametrize(
    "write, words",
    [
        (listed_as("# only\n# comments\n"), "segments.csv: holds no segments"),
        (listed_as(GOOD_LINE + "--4gqARaEJE, 0.000\n"), "segments.csv, line 2: expected an id, start, end and labels"),
        (listed_as(GOOD_LINE + '--4gqARaEJE, x, 10, "/m/03l9g"\n'), "segments.csv, line 2: .* got '--4gqARaEJE, x"),
        (listed_as(GOOD_LINE + "--4gqARaEJE, 0, 10, \n"), "segments.csv, line 2: expected .* such as /m/09x0r"),
        (
            listed_as(GOOD_LINE.replace(IDS[0], "nowhere_101")),
            "No clip of 1 can be used .1 missing; see .*--audio_dir",
        ),
        (lambda folder: [*listed_as(GOOD_LINE)(folder)[:-1], "nowhere"], "nowhere: no such folder"),
        (esc50_with(lambda root: (root / "meta" / "esc50.csv").unlink()), "esc50: expected meta/esc50.csv in it"),
        (
            esc50_with(lambda root: (root / "meta" / "esc50.csv").write_text("filename,fold\n")),
            "esc50.csv: expected a column 'category', got filename, fold",
        ),
        (
            esc50_with(lambda root: (root / "audio" / "1-3-A-0.wav").unlink()),
            "esc50.csv: 1 of 9 files are not there, such as row 4: .*1-3-A-0.wav",
        ),
        (lambda folder: ["esc50", "--source", "nowhere"], "nowhere: no such file or folder"),
        (without_list, "words: expected validation_list.txt in it, found none"),
        (two_endings, "2_nohash_0.* would be the same file of the cache, .*2_nohash_0.flac"),
    ],
)
def test_what_is_wrong_is_said(write, words, tmp_path):
    with pytest.raises(DataError, match=words):
        main([*write(tmp_path), "--output", str(tmp_path / "out.csv")])


@pytest.mark.parametrize(
    "options, words",
    [
        (["esc50", "--num_workers", "0"], "Expected num_workers of at least 1, got 0"),
        (["esc50", "--source", "x", "--url", "y"], "not allowed with"),
        (["esc50", "--sampling_rate", "32000"], "--sampling_rate has no effect without --flac_cache"),
        (["esc50", "--flac_cache", "x", "--sampling_rate", "16"], "Expected sampling_rate of 100 to 655350 Hz"),
        (["audioset", "--audio_dir", "x", "--output", "y"], "--segments --json is required"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words, capsys):
    with pytest.raises((CommandError, SystemExit)) as error:
        main(options)
    assert words in f"{error.value}\n{capsys.readouterr().err}"


def test_a_data_file_that_is_none_has_no_segments(tmp_path):
    (tmp_path / "eval.json").write_text('{"data": []}')
    with pytest.raises(DataError, match="eval.json: holds no entries"):
        prepare.read_json_segments(tmp_path / "eval.json")
