"""Vectors of what a recording holds: one a recording, one a window, or one a patch of time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_ast import ASTModel
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline, is_whole, make_pipeline
from modeling_ast.inference.recordings import Recording

LEVELS = ("clip", "window", "patch")
READOUTS = ("pooled", "rows")


@dataclass(frozen=True)
class Embeddings:
    """Vectors of a recording, in the order of time.

    Attributes:
        vectors: float32 array (rows, `vector_size` of the pipeline).
        starts: Where the stretch begins that a row was computed from, in seconds, float64 (rows,).
        ends: Where it ends.
    """

    vectors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class ASTEmbeddingPipeline(ASTAudioClassificationPipeline):
    """The vectors that a classifier decides on, for recordings of any length; see `audio_embedder`.

        embedder = audio_embedder("outputs/demo")
        embedder("street.wav", level="window").vectors

    Recordings, windows, features and batches are those of `ASTAudioClassificationPipeline`, and so are the keywords
    `chunk_length_s`, `stride_length_s`, `padding`, `on_error` and `ignore_length`. The model may have a head or none.
    Results are `Embeddings`. Three more keywords:

        level: What a row is. "clip": the recording; the mean over its windows, each by the time that it covers.
            "window": a window; what the head sees of it (`pooler_output`), with the stretch that it covers, which
            overlaps with the next one's. "patch": a column of patches; the mean over frequency of
            `last_hidden_state`, with the 175 ms that a column of 16 frames covers, every `time_stride` frames. Where
            windows overlap, a column is taken from the window that covers its centre, so that time is gone through
            once. Padding has no rows.
        readout: What is taken of a window. "pooled": what the head sees. "rows": the mean and the standard deviation
            over time of each row of patches, in some layers, one after the other: richer, where the model is frozen.
        layers: Whose output "rows" takes, from 0, the embeddings, to the number of layers; `None` takes the middle
            layer and the last.
    """

    def choose_layers(self, level: str, readout: str, layers: Sequence[int] | None) -> list[int] | None:
        """Whose output is taken, by the keywords together; `None` where it is what the head sees.

        Raises:
            ValueError: Layers that the model does not have, or keywords that do not go together.
        """
        if readout == "pooled":
            if layers is not None:
                raise ValueError("Expected layers together with readout rows, got them with pooled.")
            return None
        if level == "patch":
            raise ValueError("Expected level clip or window with readout rows, which sums up time, got patch.")
        config = self.model.config
        layers = list(config.readout_layers if layers is None else layers)
        if not layers or not all(is_whole(layer, 0) and layer <= config.num_hidden_layers for layer in layers):
            raise ValueError(f"Expected layers of 0 to {config.num_hidden_layers}, got {layers}.")
        return layers

    def vector_size(self, layers: Sequence[int] | None) -> int:
        """Numbers of a vector, by what `choose_layers` gives."""
        config = self.model.config
        if layers is None:
            return config.hidden_size
        return len(layers) * config.num_frequency_patches * 2 * config.hidden_size

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        own = {key: kwargs.pop(key) for key in ("level", "readout", "layers") if key in kwargs}
        for key, values in (("level", LEVELS), ("readout", READOUTS)):
            if own.get(key, values[0]) not in values:
                raise ValueError(f"Expected {key} to be one of {', '.join(values)}, got {own[key]!r}.")
        window_params, _, of_scores = super()._sanitize_parameters(**kwargs)
        if of_scores:
            raise TypeError(f"{next(iter(of_scores))!r} says something of scores, and embeddings have none.")
        return window_params, own, {key: value for key, value in own.items() if key == "level"}

    def preprocess(
        self, source: Recording, chunk_length_s: float | None = None, stride_length_s: Any = None, **kwargs
    ) -> Iterator[dict[str, Any]]:
        """As in the class above, and with where a window begins and how long it may be, in samples."""
        cutter = self.window_cutter(chunk_length_s, stride_length_s)
        for item in super().preprocess(source, chunk_length_s, stride_length_s, **kwargs):
            if "error" not in item:  # the first window covers its beginning too
                item = {**item, "begin": max(0, item["start"] - cutter.left), "length": cutter.length}
            yield item

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        level: str = "clip",
        readout: str = "pooled",
        layers: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        if (chosen := self.choose_layers(level, readout, layers)) is not None:
            outputs = self.model.base_model(**model_inputs, output_hidden_states=True, return_dict=True)
            states = [outputs.hidden_states[layer] for layer in chosen]
            return {"vectors": self.model.summarize_rows(states, model_inputs.get("attention_mask"))}
        outputs = self.model.base_model(**model_inputs, return_dict=True)
        if level == "patch":
            grid = self.model.fold_patches(outputs.last_hidden_state)  # (batch, frequency, time, hidden_size)
            return {"vectors": grid.float().mean(dim=1)}
        return {"vectors": outputs.pooler_output.float()}

    def postprocess(self, windows: list[dict[str, Any]], level: str = "clip") -> Embeddings:
        """The result of a recording, from its windows with their `vectors`: (1, hidden_size), or of each column."""
        end = windows[-1]["num_samples"]
        boundaries = np.array([*(window["start"] for window in windows), end])
        reaches = np.array([(window["begin"], min(window["begin"] + window["length"], end)) for window in windows])
        vectors = [window["vectors"][0].numpy() for window in windows]
        if level == "clip":
            rows, stretches = np.average(vectors, axis=0, weights=np.diff(boundaries))[None], np.array([[0, end]])
        elif level == "window":
            rows, stretches = np.stack(vectors), reaches
        else:
            parts = [
                _choose_columns(columns, self._locate_columns(*stretch), *own)
                for columns, stretch, own in zip(vectors, reaches, zip(boundaries, boundaries[1:]))
            ]
            rows, stretches = (np.concatenate(arrays) for arrays in zip(*parts))
        starts, ends = (stretches / self.feature_extractor.sampling_rate).T
        return Embeddings(rows.astype(np.float32), starts, ends)

    def _locate_columns(self, begin: int, end: int) -> np.ndarray:
        """The samples, from and to, that each column of patches without padding covers: int64 (columns, 2)."""
        config, extractor = self.model.config, self.feature_extractor
        frames = extractor.num_frames(end - begin)
        # A clip shorter than one patch is padded to one.
        count = self.model.base_model.embeddings.count_columns(max(frames, config.patch_size))
        columns = begin + np.arange(count) * config.time_stride * extractor.frame_shift
        starts = np.maximum(columns + extractor.first_sample, begin)
        return np.stack((starts, np.minimum(columns + extractor.num_samples(config.patch_size), end)), axis=1)


def _choose_columns(
    columns: np.ndarray, stretches: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those with their centre in what their window covers; columns behind the located ones are padding."""
    centres = stretches.mean(axis=1)
    is_own = (centres >= start) & (centres < stop)
    return columns[: len(stretches)][is_own], stretches[is_own]


def audio_embedder(model: str | os.PathLike[str], **kwargs: Any) -> ASTEmbeddingPipeline:
    """The pipeline of a folder or a Hub repository, of an AST with or without a head.

    Args:
        model: Folder or Hub repository.
        **kwargs: Keywords of `transformers.pipeline` (`device`, `dtype`, ...) and of the pipeline. Code that the
            folder or repository brings runs with `trust_remote_code=True` alone; nobody is asked.

    Raises:
        ModelError: As from `load_model`.
        TypeError, ValueError: As from the pipeline.
    """
    return make_pipeline("feature-extraction", model, ASTModel, ASTEmbeddingPipeline, kwargs)
