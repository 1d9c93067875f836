"""Annotations of recordings as they are, to compare with what was found in them."""

from collections.abc import Sequence

from modeling_ast.data.label_columns import read_labels
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError, parse_data_arguments
from modeling_ast.data.sources import DataSource

# Keys of a recipe that say how annotations are to be read.
KEYS = frozenset(
    (
        *("audio_column_name", "audio_dir", "label_column_name", "label_separator"),
        *("start_column_name", "end_column_name"),
    )
)
Annotations = dict[str, list[tuple[float, float, str]]]  # start, end and label, of each recording by its path


def read_truth(name: str, keys: Sequence[str] = ()) -> Annotations:
    """What is annotated in each recording, by its path; an end is infinite where it is the recording's.

    Equal stretches of one label count once.

    Args:
        name: Of a list with start and end, of a label file, or of a folder of recordings with such files beside them.
        keys: `["--key", "value", ...]`, of `KEYS`.

    Raises:
        RecipeError: Keys without effect.
        DataError: As from `DataSource`; no such list.
    """
    if idle := sorted({key.removeprefix("--").partition("=")[0] for key in keys if key.startswith("--")} - KEYS):
        raise RecipeError(f"No effect on annotations: {', '.join(idle)}.")
    _, data_args, _ = parse_data_arguments(None, [f"--dataset_name={name}", *keys], "annotations")
    source = DataSource(data_args, multi_label=True)
    tables = source._read(data_args.dataset_name, ("train", "validation", "test"))
    truth: Annotations = {}
    for table in tables.values():
        if table.stretches is None:
            raise DataError(
                f"{data_args.dataset_name}: expected annotated recordings, a list with the columns start and end or "
                "label files of Audacity or Raven beside recordings, got whole files."
            )
        labels = read_labels(table, data_args.label_separator, multi_label=True)
        names = iter([labels.names[code] for code in labels.codes])
        paths = table.column(table.audio_column).to_pylist()
        for path in (*paths, *table.stretches.unmarked):
            truth.setdefault(path, [])
        for path, start, end, count in zip(paths, table.stretches.starts, table.stretches.ends, labels.lengths):
            for _ in range(count):
                event = float(start), float(end), next(names)
                if event not in truth[path]:
                    truth[path].append(event)
    return truth
