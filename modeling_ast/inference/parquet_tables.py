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
        metadata: Where they come from; in the schema's metadata, as JSON, under `modeling_ast`.
    """
    schema = pa.schema(list(fields.items()), metadata={"modeling_ast": json.dumps(metadata)})
    rows = iter(rows)
    with written_beside(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        while group := list(islice(rows, ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def to_text(name: str) -> str:
    """The name of a file as UTF-8, in which other bytes are shown as `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
