"""The model card of a run: what was trained on what, how well it does, and how to use it."""

import json
import math
import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.configuration_ast import SIZES
from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError
from modeling_ast.data.loss_weights import WEIGHTS_NAME, LossWeights
from modeling_ast.data.metrics import METRICS
from modeling_ast.data.recipes import RECIPE_NAME, read_settings
from modeling_ast.data.sources import FILE_SUFFIXES

CARD_NAME = "README.md"
_ALL_RESULTS_NAME = "all_results.json"  # as `Trainer.save_metrics` names it

# Of `METRICS`, and the loss, which the Hub does not compare.
_METRICS = {**METRICS, "loss": ("loss", None)}
# `average_` is the model of averaged weights, `baseline_` the linear one.
_RESULT = re.compile(rf"(average_)?(validation|test)_(baseline_)?({'|'.join(_METRICS)})")
_FILE_SUFFIXES = (*FILE_SUFFIXES, ".pth", ".pt", ".bin", ".safetensors")

_TEXT = """
# {name}

An Audio Spectrogram Transformer ([Gong et al., 2021](https://arxiv.org/abs/2104.01778)) that names {num_labels} kinds
of sounds, {kind}.{provenance}
{results}
## Use

{loads} For WAV, FLAC, OGG and MP3 files of any rate: `pip install transformers soundfile
torchaudio`.

```python
import soundfile
{needed}from transformers import pipeline

samples, sampling_rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)
classifier = pipeline("audio-classification", model={address})
print(classifier({{"raw": samples.mean(axis=1), "sampling_rate": sampling_rate}}))
```

## Model

| | |
|---|---|
| audio | mono, {sampling_rate} Hz; the first {seconds:.2f} s ({max_length} frames of 10 ms), shorter clips {shorter} |
| features | {num_mel_bins} mel bins, mean {mean} and deviation {std} |
| patches | {patch_size} x {patch_size}, strides {frequency_stride} (bins), {time_stride} (frames): {tokens} tokens |
| parameters | {parameters:.1f} million |
| made with | Transformers {transformers}, torch {torch}, Python {python} |

## Labels

{labels}
"""

_IMPORT = "import modeling_ast  # without it Transformers {lack}\n"
_LOADS, _STOCK_FEATURES = "It loads in Transformers as it is.", "ASTFeatureExtractor"
_OWN_LENGTH = "pads shorter clips, which this model has not learnt"

_RESULTS_TEXT = """
| split | metric | value |
|---|---|---|
{rows}

{choice}
"""

_RECIPE_TEXT = """
## Recipe

```yaml
{recipe}
```
"""


def write_model_card(
    folder: Path,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    dataset: str | None,
    start: str | None,
    results: dict[str, float],
    repo_id: str | None = None,
) -> None:
    """Write `README.md` of a model's folder.

    Args:
        folder: Of the model, with the resolved recipe in it, if it has one, and the weights of its loss; its name is
            the model's.
        model: The trained model.
        extractor: Its feature extractor.
        dataset: Name of the data set; `None` where it is not known.
        start: What training started from; `None` where it is not known.
        results: Metrics named `{split}_{metric}`, `{split}_baseline_{metric}` for the linear model and
            `average_{split}_{metric}` for the average of the weights, and with `_low` and `_high` behind it the ends
            of their intervals. Others are left out.
        repo_id: Where on the Hub the model will be, for the example; `None` means that it stays in the folder.

    Raises:
        RecipeError: The recipe cannot be read.
    """
    config = model.config
    is_multi_label = config.problem_type == "multi_label_classification"
    name = folder.resolve().name
    recipe = folder / RECIPE_NAME
    provenance = f" Trained on `{dataset}`." if dataset else ""
    if start:
        provenance += f" Started from {'random weights' if start in SIZES else f'`{start}`'}."
    if (rank := _read_recipe(folder).get("lora_rank", "0")) != "0":
        provenance += f" Trained with LoRA of rank {rank}, merged into the weights, and a classifier trained whole."
    if (folder / WEIGHTS_NAME).is_file():
        provenance += f" Labels were weighed in the loss of training: {LossWeights.read(folder / WEIGHTS_NAME)}."
    features = type(extractor).__name__
    text = _TEXT.format(
        loads=_LOADS if features == _STOCK_FEATURES else f"It needs `modeling_ast`, for its `{features}`.",
        name=name,
        num_labels=config.num_labels,
        kind="any number in a clip" if is_multi_label else "one in a clip",
        provenance=provenance,
        results=_results_text(results, is_multi_label, _read_recipe(folder)),
        address=json.dumps(repo_id or name, ensure_ascii=False),
        sampling_rate=extractor.sampling_rate,
        seconds=extractor.seconds(extractor.max_length),
        max_length=extractor.max_length,
        shorter="as they are" if extractor.padding == "longest" else "padded",
        needed=_import_line(extractor),
        num_mel_bins=extractor.num_mel_bins,
        mean=extractor.mean,
        std=extractor.std,
        patch_size=config.patch_size,
        frequency_stride=config.frequency_stride,
        time_stride=config.time_stride,
        tokens=config.num_tokens,
        parameters=model.num_parameters() / 1e6,
        transformers=transformers.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        labels=", ".join(f"`{label}`" for label in config.id2label.values()),
    )
    if recipe.is_file():
        text += _RECIPE_TEXT.format(recipe=recipe.read_text(encoding="utf-8").strip())
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["audio-spectrogram-transformer", "modeling_ast"],
        base_model=start if _is_on_the_hub(start) else None,
        datasets=[dataset] if _is_on_the_hub(dataset) else None,
        model_name=name,
        eval_results=_eval_results(dataset, results),
    )
    with written_beside(folder / CARD_NAME) as unfinished:
        unfinished.write_text(f"---\n{metadata.to_yaml()}\n---\n{text}", encoding="utf-8")


def _import_line(extractor: ASTFeatureExtractor) -> str:
    """Of the example, with why; nothing where Transformers alone does the same."""
    features = type(extractor).__name__
    if features != _STOCK_FEATURES:
        return _IMPORT.format(lack=f"has no {features}")
    return _IMPORT.format(lack=_OWN_LENGTH) if extractor.padding == "longest" else ""


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished folder says of its run: `dataset`, `start` and `results`, as `write_model_card` takes them.

    Raises:
        RecipeError, DataError: The recipe or the results cannot be read.
    """
    recipe, results = _read_recipe(folder), {}
    try:
        if (folder / _ALL_RESULTS_NAME).is_file():
            results = json.loads((folder / _ALL_RESULTS_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{folder}: {_ALL_RESULTS_NAME} cannot be read ({error}).") from error
    if not isinstance(results, dict):
        raise DataError(f"{folder}: expected names and values in {_ALL_RESULTS_NAME}.")
    return {"dataset": recipe.get("dataset_name"), "start": recipe.get("model_name_or_path"), "results": results}


def _read_recipe(folder: Path) -> dict[str, Any]:
    """The keys of a run; none where there is no recipe."""
    return read_settings(folder / RECIPE_NAME) if (folder / RECIPE_NAME).is_file() else {}


def _choice_text(recipe: dict[str, Any], has_test: bool) -> str:
    """What chose the epoch: the run knows, by its recipe."""
    metric = str(recipe.get("metric_for_best_model", "loss")).removeprefix("eval_")
    if not recipe:
        text = "What chose the epoch is not known; where validation clips did, their metrics flatter."
    elif recipe.get("load_best_model_at_end", "false").lower() == "true":
        text = f"The validation clips chose the epoch, by the best {metric}, so that their own metrics flatter."
    elif "early_stopping_patience" in recipe:
        text = f"The validation clips chose when to stop, by their {metric}; the model is that of the last epoch."
    else:
        text = "The model is that of the last epoch: no clips chose it."
    return text + (" The test clips chose nothing." if has_test else " The data has no test clips.")


def _results_text(results: dict[str, float], is_multi_label: bool, recipe: dict[str, Any]) -> str:
    """The table of all metrics, and how the epoch and what F1 counts were chosen."""
    rows, splits = [], set()
    for key, value in results.items():
        if match := _RESULT.fullmatch(key):
            average, split, baseline, metric = match.groups()
            if metric == "classes_without_positives" and not value:
                continue
            shown = _METRICS[metric][0]
            shown = f"linear baseline, {shown}" if baseline else f"{shown}, weight average" if average else shown
            number = str(value) if isinstance(value, int) else f"{value:.4f}"
            if f"{key}_low" in results and f"{key}_high" in results:
                number += f" ({results[f'{key}_low']:.4f} to {results[f'{key}_high']:.4f})"
            rows.append(f"| {split} | {shown} | {number} |")
            splits.add(split)
    if not rows:
        return ""
    choice = _choice_text(recipe, "test" in splits)
    if is_multi_label and any("F1" in row for row in rows):
        choice += " F1 counts a label as named where its probability is at least 0.5."
    if any("(" in row.rpartition("|")[0].rpartition("|")[2] for row in rows):
        has_groups = "group_column_name" in recipe or "group_pattern" in recipe
        choice += f" In brackets: intervals of 95 %, by a bootstrap over {'groups' if has_groups else 'clips'}."
    return _RESULTS_TEXT.format(rows="\n".join(rows), choice=choice)


def _eval_results(dataset: str | None, results: dict[str, float]) -> list[EvalResult]:
    """What the Hub may compare: the metrics of this model, on the test clips where there are any."""
    reported = "test" if any(_RESULT.fullmatch(key) and key.startswith("test_") for key in results) else "validation"
    # A path says nothing to others; the last part of it may.
    name = "unknown" if dataset is None else dataset if _is_on_the_hub(dataset) else Path(dataset).name
    return [
        EvalResult(
            task_type="audio-classification",
            dataset_type=re.sub(r"[^\w./-]+", "-", name),
            dataset_name=name,
            dataset_split=reported,
            metric_type=identifier,
            metric_name=shown[0].upper() + shown[1:] if shown[1].islower() else shown,
            metric_value=results[f"{reported}_{metric}"],
        )
        for metric, (shown, identifier) in _METRICS.items()
        if identifier and math.isfinite(results.get(f"{reported}_{metric}", math.nan))
    ]


def _is_on_the_hub(name: str | None) -> bool:
    """Whether a name is `owner/name`, as on the Hub, and no path: there is no folder that it would be in."""
    if name is None or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or name.endswith(_FILE_SUFFIXES):
        return False
    return not Path(name).parent.is_dir()
