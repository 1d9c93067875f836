"""The shipped tables are those of the original, and what is wrong with a table is said."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_ast.data.labels import SHIPPED_TABLES, DataError, LabelTable, read_label_table, read_paper_eval_ids

ROOT = Path(__file__).resolve().parents[1]
ORIGINAL = {
    "audioset": "audioset_class_labels_indices.csv",
    "esc50": "esc_class_labels_indices.csv",
    "speech_commands_v2": "speechcommands_class_labels_indices.csv",
}


@pytest.mark.parametrize("name, size", [("audioset", 527), ("esc50", 50), ("speech_commands_v2", 35)])
def test_shipped_table_is_the_original_s(reference, name, size):
    table = read_label_table(name)
    with open(reference / ORIGINAL[name], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (table.mids, table.names) == ([row["mid"] for row in rows], [row["display_name"] for row in rows])
    assert len(table) == size
    assert read_label_table(reference / ORIGINAL[name]) == table  # the original's own file is read as well


def test_paper_s_evaluation_ids_are_the_19185_of_the_original(reference):
    ids = read_paper_eval_ids()
    assert ids == set((reference / "audioset_paper_eval_ids.csv").read_text().split()) and len(ids) == 19185


def test_tables_are_known_without_the_original():
    """Some that can be looked up: facts of the data sets."""
    names = {name: read_label_table(name).names for name in SHIPPED_TABLES}
    assert [names["audioset"][index] for index in (0, 137, 526)] == ["Speech", "Music", "Field recording"]
    assert [names["esc50"][index] for index in (0, 49)] == ["dog", "hand_saw"]
    assert [names["speech_commands_v2"][index] for index in (0, 34)] == ["backward", "one"]


@pytest.mark.parametrize("name", SHIPPED_TABLES)
def test_label_is_found_by_mid_name_and_number(name):
    table = read_label_table(name)
    index_of = table.index_of()
    for index in range(len(table)):
        assert {index_of[way] for way in (table.mids[index], table.names[index], str(index))} == {index}


def test_table_without_mids_has_names_alone(tmp_path):
    (tmp_path / "labels.csv").write_text("index,display_name\n1,cat\n0,bird\n")
    table = read_label_table(tmp_path / "labels.csv")
    assert table.names == table.mids == ["bird", "cat"]
    assert table.index_of() == {"bird": 0, "cat": 1, "0": 0, "1": 1}


def test_numbers_that_are_names_are_names_alone():
    assert LabelTable(["/m/a", "/m/b"], ["1", "0"]).index_of() == {"/m/a": 0, "/m/b": 1, "1": 0, "0": 1}


def test_order_of_the_rows_does_not_matter(tmp_path):
    (tmp_path / "labels.csv").write_bytes(
        '\ufeffdisplay_name,index,mid,count\r\ncat,1,/m/c,5\r\n"Hum, low",0,/m/h,3\r\n'.encode()
    )
    assert read_label_table(tmp_path / "labels.csv") == LabelTable(["/m/h", "/m/c"], ["Hum, low", "cat"])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_table_is_read_however_it_is_written(tmp_path, separator, encoding):
    rows = [
        ["index", "mid", " display_name"],
        ["0", "/m/a", "grün "],
        ["1", "/m/b", '"Hum, low; and high"'],
        ["", "", ""],
    ]
    text = "".join(separator.join(row) + "\r\n" for row in rows)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    assert read_label_table(tmp_path / "labels.csv") == LabelTable(["/m/a", "/m/b"], ["grün", "Hum, low; and high"])


HEADER = "index,mid,display_name\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "labels.csv: expected the columns index, mid and display_name .* index is missing in an empty file"),
        ("index,mid\n0,a\n", "labels.csv: expected the columns .* display_name is missing in index, mid"),
        (HEADER, "labels.csv: holds no labels"),
        (HEADER + "0,/m/a,a\n1,/m/b\n", "labels.csv, line 3: expected 3 columns, got 2"),
        (HEADER + "0,,a\n", "labels.csv, line 2: expected a mid and a display name, got '' and 'a'"),
        (HEADER + "0,/m/a,a\nx,/m/b,b\n", "labels.csv, line 3: expected an index of 0 or more, got 'x'"),
        (HEADER + "-1,/m/a,a\n", "labels.csv, line 2: expected an index of 0 or more, got '-1'"),
        (HEADER + "0,/m/a,a\n0,/m/b,b\n", "labels.csv, line 3: the index 0 stands there twice"),
        (HEADER + "1,/m/a,a\n2,/m/b,b\n", "labels.csv: expected 2 labels with the indices 0 to 1, but 0 is missing"),
        (HEADER + "0,/m/a,a\n1,/m/a,b\n", "labels.csv: '/m/a' stands for the labels 0 and 1"),
        (HEADER + "0,/m/a,a\n1,/m/b,a\n", "labels.csv: 'a' stands for the labels 0 and 1"),
        (HEADER + "0,a,b\n1,b,c\n", "labels.csv: 'b' stands for the labels 0 and 1"),
        (HEADER + '0,/m/a,"a\n', "labels.csv, line 2: not CSV"),
        ((HEADER + "0,/m/a,caf\x81\n").encode("latin-1"), "labels.csv, line 2: not UTF-8 nor cp1252"),
        (HEADER + "0,/m/a,\u00e9\n1,/m/b,e\u0301\n", "labels.csv: 'é' stands for the labels 0 and 1"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, words):
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        read_label_table(tmp_path / "labels.csv")


@pytest.mark.parametrize("name", ["nowhere.csv", "audio_set"])
def test_table_that_is_not_there_is_an_error_that_names_the_shipped_ones(name):
    with pytest.raises(DataError, match=f"{name}: no such label table.*audioset, esc50, speech_commands_v2"):
        read_label_table(name)


@pytest.mark.slow
def test_installed_wheel_brings_the_tables(tmp_path):
    pytest.importorskip("setuptools")
    outside = shutil.ignore_patterns(".git", "build", "outputs", "*.egg-info", "tests")
    shutil.copytree(ROOT, tmp_path / "source", ignore=outside)
    build = "import setuptools.build_meta, sys; setuptools.build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "source", check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "installed", format="zip")
    code = (
        "from modeling_ast.data import labels as t; "
        "print(t.__file__, [len(t.read_label_table(name)) for name in t.SHIPPED_TABLES], len(t.read_paper_eval_ids()))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    path = tmp_path / "installed" / "modeling_ast" / "data" / "labels.py"
    assert done.stdout.strip() == f"{path} [527, 50, 35] 19185"
