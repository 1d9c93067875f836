"""The folder of a calibrated model: the model, its card, and what its calibration changed."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.model_card import CARD_NAME, read_run, write_model_card
from modeling_ast.data.recipes import RECIPE_NAME
from modeling_ast.data.unknown import UNKNOWN, can_be_unknown
from modeling_ast.inference.figures import may_fail
from modeling_ast.inference.model_folders import new_model_folder
from modeling_ast.inference.result_plots import plot_reliability
from modeling_ast.inference.timeline import DEFAULT_THRESHOLD

CALIBRATION_NAME, PICTURE_NAME = "calibration_results.json", "calibration.png"
COLUMNS = {
    **{"nll": "NLL", "ece": "ECE", "accuracy": "accuracy", "macro_f1": "macro F1", "micro_f1": "micro F1"},
    **{"macro_f1_at_thresholds": "macro F1 at thresholds", "micro_f1_at_thresholds": "micro F1 at thresholds"},
}

# One name, one meaning: F1 is that of the model's own decisions, here as everywhere.
F1_WORDS = {
    "single_label_classification": "Accuracy and F1 take the most probable label; at thresholds, F1 counts a label as "
    "named from its threshold on, or from {} on.",
    "multi_label_classification": "F1 counts a label as named from its threshold on, or from {} on.",
}
CARD_HEADING = "\n## Calibration\n"
CARD_TEXT = """
After training, on {clips} validation clips:

{steps}

The metrics further up are those of before. NLL is the negative log-likelihood, ECE the expected calibration error (15
bins). In brackets are intervals of 95 %, over clips or groups of them; the validation clips, which chose what comes
after, flatter it, and have none. {f1}

{table}
"""


def write_calibrated_model(
    source: str,
    output_dir: Path,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    results: Mapping[str, Any],
    section: str,
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> None:
    """Write the calibrated model, its card and what was found; the folder is there when it is whole.

    Args:
        source: The model of before, a folder or a name on the Hub, whose card, recipe and licence are taken over.
        output_dir: New, or empty.
        model: The calibrated model.
        extractor: Its feature extractor.
        results: What was found, and figures of before and after.
        section: Of the card, that says so.
        curves: What `plot_reliability` draws, where there is something to draw.
    """
    with new_model_folder(output_dir, model, extractor, CALIBRATION_NAME, results) as folder:
        with may_fail(PICTURE_NAME):
            if curves is not None:
                plot_reliability(curves, folder / PICTURE_NAME, output_dir.name)
        for path in (Path(source) / RECIPE_NAME, *Path(source).glob("LICENSE*")):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        _write_card(Path(source), folder, model, extractor, section)


def metrics_table(results: Mapping[str, Any]) -> str:
    """The metrics of all splits, with the ends of their intervals, in Markdown."""
    keys = [key for key in COLUMNS if key in results["validation"]["before"]]
    lines = ["| clips | | " + " | ".join(COLUMNS[key] for key in keys) + " |", "|---|---|" + "---|" * len(keys)]
    for split in ("validation", "test"):
        for when in ("before", "after") if split in results else ():
            cells = (_with_ends(results[split][when], key) for key in keys)
            lines.append(f"| {split} ({results[split]['clips']}) | {when} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_ends(measured: Mapping[str, float], key: str) -> str:
    low, high = (measured.get(f"{key}_{end}") for end in ("low", "high"))
    return f"{measured[key]:.4f}" + ("" if low is None else f" ({low:.4f} to {high:.4f})")


def _write_card(
    source: Path,
    folder: Path,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    section: str,
) -> None:
    """The model's own card under its new name, or a new one, and what was done since."""
    card = folder / CARD_NAME
    if (source / CARD_NAME).is_file():
        before, _, after = (source / CARD_NAME).read_text(encoding="utf-8").partition(CARD_HEADING)
        text = before + "".join(after.partition("\n## ")[1:])  # what somebody wrote behind it stays
        old, new = source.resolve().name, folder.name
        text = text.replace(f"\n# {old}\n", f"\n# {new}\n").replace(f'model="{old}"', f'model="{new}"')
    else:
        run = read_run(source) if source.is_dir() else {"dataset": None, "start": str(source), "results": {}}
        write_model_card(folder, model, extractor, **run)
        text = card.read_text(encoding="utf-8")
    card.write_text(text.rstrip("\n") + "\n" + CARD_HEADING + section, encoding="utf-8")


def describe_calibration(model: ASTForAudioClassification, results: Mapping[str, Any]) -> str:
    """What a card says of temperature, thresholds and the metrics before and after.

    Args:
        model: The calibrated model.
        results: What was found, and the metrics of each split before and after, as `measure_splits` gives them.
    """
    steps = []
    if results["temperature"] is not None:
        steps.append(f"- The logits were divided by a temperature of {results['temperature']:.4f}, in the classifier.")
    if (thresholds := model.config.thresholds) is not None:
        goal = "from an earlier calibration"
        if "without_positives" in results:  # they were found now
            precision = results["target_precision"]
            goal = "for the best F1" if precision is None else f"for a precision of {precision}"
        steps.append(
            f"- {len(thresholds)} of {model.config.num_labels} labels have a threshold {goal}, in `config.json`."
        )
    if UNKNOWN in results:
        steps.append("- A distance was found, beyond which a clip is of none of the labels: see below.")
    elif can_be_unknown(model.config):
        steps.append("- Beyond a distance that an earlier calibration found a clip is of none of the labels.")
    return CARD_TEXT.format(
        clips=results["validation"]["clips"],
        steps="\n".join(steps),
        f1=F1_WORDS[results["problem_type"]].format(DEFAULT_THRESHOLD),
        table=metrics_table(results),
    )
