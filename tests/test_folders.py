"""What lies in folders: sounds whatever they are called, once each, nothing hidden, and what is left out is said."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from modeling_ast.audio import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES, load_waveform
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.folders import find_sounds
from modeling_ast.data.labels import DataError
from modeling_ast.data.prepare import index_clips
from modeling_ast.data.sources import load_splits
from modeling_ast.inference.page import find_examples
from modeling_ast.inference.sound_files import find_files

pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder: Path, *names: str) -> Path:
    """Some sounds, and other files empty."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".wav":
            soundfile.write(path, np.linspace(-0.5, 0.5, 800), 16000)
        else:
            path.touch()
    return folder


def classes(folder: Path, *names: str, clips: int = 3) -> Path:
    return write(folder, *(f"{name}/{number}.wav" for name in names or ("cat", "dog") for number in range(clips)))


def found(splits: AudioSplits) -> dict[str, list[str]]:
    """Paths of the clips of each label, without regard to the split."""
    clips = {}
    for _, rows in splits:
        for row in rows:
            clips.setdefault(splits.label_names[row["labels"]], []).append(row["audio"]["path"])
    return clips


def counts(splits: AudioSplits) -> dict[str, int]:
    return {label: len(paths) for label, paths in sorted(found(splits).items())}


# Splits and classes


@pytest.mark.parametrize("beside", [".git", ".cache", "__MACOSX", "docs", "unlabeled", "_unused"])
def test_split_folders_stay_splits_whatever_lies_beside_them(tmp_path, caplog, beside):
    classes(tmp_path / "train")
    classes(tmp_path / "test", clips=2)
    write(tmp_path, f"{beside}/readme.txt", *([f"{beside}/a.wav"] if beside != "docs" else []))
    splits = load_splits(str(tmp_path))
    assert splits.label_names == ["cat", "dog"] and counts(splits) == {"cat": 5, "dog": 5}
    assert len(splits.test) == 4 and len(splits.train) + len(splits.validation) == 6
    assert f"beside test, train, passed over as no split: {beside}" in caplog.text


@pytest.mark.parametrize(
    "names, words",
    [
        (["train/cat/0.wav", "train/dog/0.wav", "test/cat/0.wav", "dog/1.wav"], "may be both, .* beside dog"),
        (["train/cat/0.wav", "train/dog/0.wav", "unlabeled/1.wav"], "may be both, train beside unlabeled"),
        (["test/cat/0.wav", "cat/0.wav", "dog/1.wav"], "may be both, test beside (cat, dog|dog, cat)"),
        (["train/0.wav", "test/0.wav", "dog/1.wav"], "may be both, .* beside dog"),
        (["test/cat/0.wav", "test/dog/0.wav", "val/cat/0.wav", "val/dog/0.wav"], "expected a split called train"),
        (
            ["train/cat/0.wav", "train/dog/0.wav", "dev/cat/0.wav", "val/dog/0.wav"],
            "one validation split, got dev and",
        ),
        (["train/cat/0.wav", "test/0.wav"], "test: expected a sub-folder a class with sound files"),
        (
            ["train/cat/0.wav", "test/cat/0.wav", "testing_list.txt"],
            "testing_list.txt or folders train, test, got both",
        ),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path, names, words):
    with pytest.raises(DataError, match=words):
        load_splits(str(write(tmp_path, *names)))


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, name):
    assert counts(load_splits(str(classes(tmp_path, name, "dog")))) == {"dog": 3, name: 3}


def test_class_folders_in_two_normal_forms_are_one_class(tmp_path):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write(classes(tmp_path, "dog"), f"{forms[0]}/a.wav", f"{forms[1]}/b.wav")
    assert counts(load_splits(str(tmp_path))) == {forms[0]: 2, "dog": 3}


# What is a clip


@pytest.mark.parametrize(
    "hidden", ["cat/._0.wav", "cat/.x.wav", "cat/.ipynb_checkpoints/0.wav", "cat/__MACOSX/0.wav", ".Trash/0.wav"]
)
def test_hidden_files_are_no_clips(tmp_path, hidden):
    """For every reader of folders alike."""
    write(classes(tmp_path / "data"), hidden)
    expected = sorted(
        str(tmp_path / "data" / name / f"{number}.wav") for name in ("cat", "dog") for number in range(3)
    )
    assert sorted(sum(found(load_splits(str(tmp_path / "data"))).values(), [])) == expected
    assert sorted(find_sounds(tmp_path / "data")) == expected
    assert [file.path for file in find_files([tmp_path / "data"], tmp_path / "out")] == expected
    assert sorted(sum(index_clips(tmp_path / "data").values(), [])) == expected
    assert list(map(str, find_examples(tmp_path / "data"))) == expected


WRITABLE = {
    **{".wav": "WAV", ".wave": "WAV", ".bwf": "WAV", ".rf64": "RF64", ".w64": "W64", ".flac": "FLAC", ".caf": "CAF"},
    **{".ogg": "OGG", ".oga": "OGG", ".mp3": "MP3", ".aif": "AIFF", ".aiff": "AIFF", ".aifc": "AIFF", ".au": "AU"},
    **{".snd": "AU", ".sph": "NIST", ".nist": "NIST", ".opus": "OGG"},
}


@pytest.mark.parametrize("suffix", [*WRITABLE, ".WAV", ".Opus"])
def test_what_can_be_decoded_is_a_clip_whatever_its_ending(tmp_path, suffix):
    kind, subtype = WRITABLE[suffix.lower()], "OPUS" if suffix.lower() == ".opus" else None
    path = classes(tmp_path) / "cat" / f"x{suffix}"
    soundfile.write(path, np.linspace(-0.5, 0.5, 1600), 16000, format=kind, subtype=subtype)
    assert counts(load_splits(str(tmp_path))) == {"cat": 4, "dog": 3}
    assert len(load_waveform(path)) >= 1600


def test_no_ending_is_both_decoded_and_to_be_converted():
    assert set(AUDIO_SUFFIXES) == set(WRITABLE) and not set(AUDIO_SUFFIXES) & set(CONVERTIBLE_SUFFIXES)


def test_what_is_left_out_is_counted_in_one_sentence(tmp_path, caplog):
    write(classes(tmp_path), "cat/a.m4a", "cat/b.M4A", "dog/c.webm", "dog/notes", "LICENSE", "loose.wav")
    load_splits(str(tmp_path))
    sentence = "4 file(s) are left out, by their endings no sounds that can be read: 2 .m4a (MPEG-4), 1 without an"
    assert caplog.text.count("left out, by their endings") == 1 and sentence in caplog.text
    assert (
        " ending, 1 .webm (WebM or Matroska). What holds sound is to be converted: ffmpeg -i clip.m4a clip.wav"
        in caplog.text
    )
    assert "1 sound file(s) in no class folder are left out, such as loose.wav" in caplog.text
    caplog.clear()
    assert len(find_files([tmp_path], tmp_path / "out")) == 7
    assert "5 file(s) are left out" in caplog.text


# Links


@pytest.mark.parametrize("target", [".", "..", "../..", "../cat"])
def test_a_loop_of_links_adds_no_clips_and_is_said(tmp_path, caplog, target):
    folder = classes(write(tmp_path, "beside/other.wav") / "data", "cat", "dog", clips=5)
    (folder / "cat" / "again").symlink_to(target)
    assert counts(load_splits(str(folder))) == {"cat": 5, "dog": 5}
    assert "1 folder(s) passed over" in caplog.text and "again (a link to " in caplog.text
    assert len(find_files([folder], tmp_path / "out")) == 10


def test_what_two_links_lead_to_counts_once_and_where_it_lies_itself_first(tmp_path, caplog):
    folder = write(classes(tmp_path / "data", "cat", "dog"), "dog/small/4.wav")
    write(tmp_path, "pool/5.wav")
    (folder / "cat" / "a").symlink_to("../dog/small")  # comes first by its name, and is no cat
    (folder / "cat" / "b").symlink_to("../../pool")
    (folder / "dog" / "c").symlink_to("../../pool")
    (folder / "hound").symlink_to("dog")
    assert counts(load_splits(str(folder))) == {"cat": 4, "dog": 4}
    assert "3 folder(s) passed over" in caplog.text


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, caplog, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    classes(tmp_path, "cat", "locked")
    monkeypatch.setattr(os, "scandir", refuse)
    assert len(list(find_sounds(tmp_path))) == 3
    assert "locked (Permission denied)" in caplog.text


# Other kinds of data sets in a folder


def test_a_table_beside_class_folders_hides_no_sounds(tmp_path, caplog):
    write(classes(tmp_path), "embeddings.parquet")
    assert counts(load_splits(str(tmp_path))) == {"cat": 3, "dog": 3}
    assert "not the 1 Parquet file(s) beside them, such as embeddings.parquet" in caplog.text


def test_the_lists_of_an_audio_folder_are_read_as_lists_too(tmp_path):
    lists = {}
    for split in ("train", "validation"):
        write(tmp_path / split, *(f"{number}.wav" for number in range(4)))
        lines = "".join(f"{number}.wav,{'xy'[number % 2]}\n" for number in range(4))
        lists[split] = tmp_path / split / "metadata.csv"
        lists[split].write_text("file_name,label\n" + lines)
    splits = load_splits(str(lists["train"]), validation_file=str(lists["validation"]), audio_column_name="file_name")
    assert counts(splits) == {"x": 4, "y": 4}


def test_a_table_of_other_columns_is_no_metadata(tmp_path):
    (classes(tmp_path) / "metadata.csv").write_text("speaker,age\na,30\n")
    assert counts(load_splits(str(tmp_path))) == {"cat": 3, "dog": 3}


def test_metadata_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match="metadata.parquet: cannot be read"):
        load_splits(str(write(classes(tmp_path), "metadata.parquet")))
