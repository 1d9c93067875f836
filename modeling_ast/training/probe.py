"""What a model knows already: a linear classifier on its frozen embeddings of labelled clips."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from modeling_ast import ASTFeatureExtractor, ASTModel
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import decode
from modeling_ast.data.metrics import compute_metrics, multi_hot
from modeling_ast.data.processes import decided_by_main
from modeling_ast.data.recipes import RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_once, read_splits
from modeling_ast.training.baseline import check_classes, predict_linearly


class Probe:
    """Fits on the training clips of a data set, and reports on those that it holds out for a test, or to choose on.

    Args:
        splits: Not decoded.
        extractor: Of the model's features.
        batch_size: Clips at a time.
    """

    def __init__(self, splits: AudioSplits, extractor: ASTFeatureExtractor, batch_size: int):
        to_clips = partial(decode, sampling_rate=extractor.sampling_rate, ignore_length=splits.ignore_length)
        self.train = to_clips(splits.train)
        self.held_out = to_clips(splits.validation if splits.test is None else splits.test)
        self.num_labels, self.batch_size = len(splits.label_names), batch_size
        self.collator = ASTDataCollator(extractor, self.num_labels, multi_label=True)

    def measure(self, model: ASTModel) -> dict[str, float]:
        """What the main process finds; all have to call it together.

        Returns:
            `pooled_accuracy`, of the pooled output, and `rows_accuracy`, of the mean and deviation over time of each
            row of patches in the middle layer and the last; with several labels a clip `pooled_mAP` and `rows_mAP`.
        """
        return decided_by_main(lambda: self._measure(model))

    def _measure(self, model: ASTModel) -> dict[str, float]:
        was_training = model.training
        model.eval()
        try:
            train, train_labels = self._embed(model, self.train)
            held_out, labels = self._embed(model, self.held_out)
        finally:
            model.train(was_training)
        results = {}
        for name, features in train.items():
            probabilities, problem_type = predict_linearly(features, train_labels, held_out[name])
            metric = "accuracy" if problem_type == "single_label_classification" else "mAP"
            results[f"{name}_{metric}"] = compute_metrics(probabilities, labels, problem_type)[metric]
        return results

    @torch.no_grad()
    def _embed(self, model: ASTModel, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Embeddings of clips by their name, and the labels of the clips, multi-hot (clips, num_labels)."""
        found, labels = {"pooled": [], "rows": []}, []
        for start in range(0, len(rows), self.batch_size):
            clips = [rows[index] for index in range(start, min(start + self.batch_size, len(rows)))]
            batch = {name: tensor.to(model.device) for name, tensor in self.collator(clips).items()}
            mask = batch.get("attention_mask")
            output = model(batch["input_values"], mask, output_hidden_states=True, return_dict=True)
            layers = [output.hidden_states[layer] for layer in model.config.readout_layers]
            found["pooled"].append(output.pooler_output.float().cpu())
            found["rows"].append(model.summarize_rows(layers, mask).cpu())
            labels += [clip["labels"] for clip in clips]
        arrays = {name: torch.cat(parts).numpy() for name, parts in found.items()}
        return arrays, multi_hot(labels, self.num_labels).astype(int)


def read_probe(recipe: str, extractor: ASTFeatureExtractor, batch_size: int) -> Probe:
    """The probe of a recipe's labelled clips; all processes have to call it together.

    Raises:
        RecipeError: It cannot be read, or its data are a stream, without labels, or all of one class.
        DataError: Its data cannot be used.
    """
    model_args, data_args, _ = parse_data_arguments(recipe, [], "the probe")
    if data_args.streaming or data_args.unlabelled:
        raise RecipeError(f"{recipe}: expected a table of labelled clips for probe_recipe, got a stream or no labels.")
    multi_label = model_args.problem_type == "multi_label_classification"
    splits = read_once(partial(read_splits, data_args, multi_label))
    check_classes(splits.train, splits.label_names, "probe_recipe")
    return Probe(splits, extractor, batch_size)
