"""The model card of a run: what was trained on what, how well it does, and how to use it."""

import platform
from pathlib import Path

import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.configuration_ast import SIZES
from modeling_ast.training.recipes import RECIPE_NAME

_TEXT = """
# {name}

An Audio Spectrogram Transformer ([Gong et al., 2021](https://arxiv.org/abs/2104.01778)) that names {num_labels} kinds
of sounds, {kind}. Trained on `{dataset}`, starting from {start}.

| split | metric | value |
|---|---|---|
{results}

{choice}

## Use

It loads in Transformers as it is. Clips are mono at {sampling_rate} Hz; of each, the first {seconds:.2f} s
({max_length} frames) are heard.

```python
import soundfile
from transformers import pipeline

samples, sampling_rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)
classifier = pipeline("audio-classification", model="{name}")
print(classifier({{"raw": samples.mean(axis=1), "sampling_rate": sampling_rate}}))
```

## Labels

{labels}

## Recipe

{parameters:.1f} million parameters, {tokens} tokens, strides {frequency_stride} (mel bins) and {time_stride} (frames).
Transformers {transformers}, torch {torch}, Python {python}.

```yaml
{recipe}
```
"""


def write_model_card(
    folder: Path,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    dataset: str,
    start: str,
    results: dict[str, float],
) -> None:
    """Write `README.md` of a model's folder.

    Args:
        folder: Of the model, with the resolved recipe in it; its name is the model's.
        model: The trained model.
        extractor: Its feature extractor.
        dataset: Name of the data set.
        start: What training started from.
        results: Metrics named `{split}_{metric}`.
    """
    config = model.config
    shown = {}
    for key, value in results.items():
        split, _, metric = key.partition("_")
        if split in ("validation", "test") and metric.removeprefix("baseline_") in ("accuracy", "mAP", "loss"):
            shown[split, metric] = value
    reported = "test" if any(split == "test" for split, _ in shown) else "validation"
    name = folder.resolve().name
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["audio-spectrogram-transformer", "modeling_ast"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="audio-classification",
                dataset_type=Path(dataset).name,
                dataset_name=Path(dataset).name,
                dataset_split=split,
                metric_type=metric,
                metric_value=value,
            )
            for (split, metric), value in shown.items()
            if metric in ("accuracy", "mAP") and split == reported
        ],
    )
    is_chosen_on_validation = reported == "test"
    text = _TEXT.format(
        name=name,
        num_labels=config.num_labels,
        kind="any number in a clip" if config.problem_type == "multi_label_classification" else "one in a clip",
        dataset=dataset,
        start="random weights" if start in SIZES else f"`{start}`",
        results="\n".join(
            f"| {split} | {metric.replace('baseline_', 'linear baseline, ')} | {value:.4f} |"
            for (split, metric), value in shown.items()
        ),
        choice="The validation clips may have chosen the epoch; the test clips were looked at once."
        if is_chosen_on_validation
        else "The validation clips may also have chosen the epoch, which flatters; the data has no test clips.",
        sampling_rate=extractor.sampling_rate,
        seconds=extractor.max_length * 0.01,
        max_length=extractor.max_length,
        labels=", ".join(config.id2label.values()),
        parameters=model.num_parameters() / 1e6,
        tokens=config.num_tokens,
        frequency_stride=config.frequency_stride,
        time_stride=config.time_stride,
        transformers=transformers.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        recipe=(folder / RECIPE_NAME).read_text(encoding="utf-8").strip(),
    )
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n{text}", encoding="utf-8")
