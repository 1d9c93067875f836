"""Parquet tables of many recordings, which are written while their rows come."""

import json
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_ast.data.files import written_beside

# Rows that are in memory before they are written: 12 MB of base384's vectors.
ROWS_A_GROUP = 4096
# Of a schema's metadata: where the rows come from, as JSON.
SETTINGS_KEY = "modeling_ast"


def write_rows(
    path: str | os.PathLike,
    rows: Iterable[Mapping[str, Any]],
    fields: Mapping[str, pa.DataType],
    metadata: Mapping[str, Any],
) -> None:
    """A table that is there when it is whole.

    Args:
        path: Of the file.
        rows: As they come.
        fields: Of the columns.
        metadata: Where they come from; in the schema's metadata, as JSON, under `SETTINGS_KEY`.
    """
    schema = pa.schema(list(fields.items()), metadata={SETTINGS_KEY: json.dumps(metadata)})
    rows = iter(rows)
    with written_beside(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        while group := list(islice(rows, ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def to_text(name: str) -> str:
    """The name of a file as UTF-8, in which other bytes are shown as `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def write_tags(path: str | os.PathLike, lines: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """The tags of recordings, a row each: path, seconds, error, and labels with their scores, best first.

    Args:
        path: Of the file.
        lines: As a folder of tags has them.
        settings: Of that folder.
    """
    fields = {
        "path": pa.string(),
        "seconds": pa.float64(),
        "error": pa.string(),
        "labels": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
    }
    rows = (
        {
            "path": to_text(line["path"]),
            "seconds": line.get("seconds"),
            "error": to_text(line["error"]) if "error" in line else None,
            "labels": [tag["label"] for tag in line.get("tags", ())],
            "scores": [tag["score"] for tag in line.get("tags", ())],
        }
        for line in lines
    )
    write_rows(path, rows, fields, settings)
