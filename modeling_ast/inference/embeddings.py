"""Vectors of what a recording holds: one a recording, one a window, or one a patch of time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_ast import ASTModel
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline, make_pipeline
from modeling_ast.inference.recordings import Recording

LEVELS = ("clip", "window", "patch")


@dataclass(frozen=True)
class Embeddings:
    """Vectors of a recording, in the order of time.

    Attributes:
        vectors: float32 array (rows, hidden_size).
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
    Results are `Embeddings`. One more keyword:

        level: What a row is. "clip": the recording; the mean over its windows, each by the time that it covers.
            "window": a window; what the head sees of it (`pooler_output`), with the stretch that it covers, which
            overlaps with the next one's. "patch": a column of patches; the mean over frequency of
            `last_hidden_state`, with the 175 ms that a column of 16 frames covers, every `time_stride` frames. Where
            windows overlap, a column is taken from the window that covers its centre, so that time is gone through
            once. Padding has no rows.
    """

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        level = {key: kwargs.pop(key) for key in ("level",) if key in kwargs}
        if level and level["level"] not in LEVELS:
            raise ValueError(f"Expected level to be one of {', '.join(LEVELS)}, got {level['level']!r}.")
        window_params, _, of_scores = super()._sanitize_parameters(**kwargs)
        if of_scores:
            raise TypeError(f"{next(iter(of_scores))!r} says something of scores, and embeddings have none.")
        return window_params, level, level

    def preprocess(
        self, source: Recording, chunk_length_s: float | None = None, stride_length_s: Any = None, **kwargs
    ) -> Iterator[dict[str, Any]]:
        """As in the class above, and with where a window begins and how long it may be, in samples."""
        cutter = self.window_cutter(chunk_length_s, stride_length_s)
        for item in super().preprocess(source, chunk_length_s, stride_length_s, **kwargs):
            if "error" not in item:  # the first window covers its beginning too
                item = {**item, "begin": max(0, item["start"] - cutter.left), "length": cutter.length}
            yield item

    def _forward(self, model_inputs: dict[str, torch.Tensor], level: str = "clip") -> dict[str, torch.Tensor]:
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
