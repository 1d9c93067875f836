"""A recording that is still arriving, window by window."""

from typing import Any

import numpy as np
import torch

from modeling_ast import AudioError
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline, is_whole
from modeling_ast.inference.recordings import to_mono
from modeling_ast.inference.windows import Window
from modeling_ast.resampling import StreamResampler


class StreamTagger:
    """A recording that is still arriving, from a microphone or a socket, tagged as the pipeline tags it as a file.

    The scores of all windows are kept for `finish`: of 527 labels 2 kB each.

    Args:
        classifier: The pipeline.
        sampling_rate: Of what arrives, in Hz; `None` means the model's.
        **kwargs: Keywords of the pipeline, but for `on_error` and `ignore_length`.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A keyword with a value that cannot work.
    """

    def __init__(self, classifier: ASTAudioClassificationPipeline, sampling_rate: int | None = None, **kwargs):
        for key in ("on_error", "ignore_length"):
            if key in kwargs:
                raise TypeError(f"StreamTagger has no keyword {key!r}.")
        window_params, _, self.result_params = classifier._sanitize_parameters(**kwargs)
        window_params = {**classifier._preprocess_params, **window_params}
        self.result_params = {**classifier._postprocess_params, **self.result_params}
        classifier._check_windows(window_params)
        rate = classifier.feature_extractor.sampling_rate
        if sampling_rate is not None and not is_whole(sampling_rate, 1):
            raise ValueError(f"Expected sampling_rate to be a whole number of Hz above 0, got {sampling_rate!r}.")
        self.classifier = classifier
        self.resampler = StreamResampler(rate if sampling_rate is None else sampling_rate, rate)
        self.cutter = classifier.window_cutter(
            window_params.get("chunk_length_s"), window_params.get("stride_length_s")
        )
        self.feature_params = {key: window_params.get(key) for key in ("chunk_length_s", "padding")}
        self.windows = []
        self.is_finished = False

    def push(self, waveform: np.ndarray | torch.Tensor) -> list[dict[str, Any]]:
        """Tag what has arrived.

        Args:
            waveform: The next samples, mono, of any number; floats in [-1, 1] or integer PCM.

        Returns:
            A result for each window that is complete now, as the pipeline gives them, with a `timeline` of one row:
            what the window covers.

        Raises:
            AudioError: NaN or infinite samples, or several channels. Then nothing of them was taken.
            ValueError: The stream is finished.
        """
        self._check_unfinished()
        if not isinstance(waveform, (np.ndarray, torch.Tensor)) or waveform.ndim != 1:
            got = f"shape {tuple(waveform.shape)}" if hasattr(waveform, "shape") else type(waveform).__name__
            raise AudioError(f"<stream>: expected an array of mono samples of shape (samples,), got {got}.")
        samples = to_mono(waveform, "<stream>")
        if not torch.isfinite(samples).all():
            raise AudioError("<stream>: expected finite samples, got NaN or infinite ones.")
        return [self._tag(window) for window in self.cutter.push(self.resampler.push(samples))]

    def finish(self) -> list[dict[str, Any]] | dict[str, Any]:
        """The result for the whole recording, the same as the pipeline gives for it as a file.

        Raises:
            AudioError: Nothing arrived, or less than 25 ms.
            ValueError: The stream was finished before.
        """
        self._check_unfinished()
        self.is_finished = True
        for window in [*self.cutter.push(self.resampler.finish()), *self.cutter.finish()]:
            self._tag(window)
        if not self.windows:
            raise AudioError("<stream>: holds no samples.")
        self.windows[-1]["num_samples"] = self.cutter.num_samples
        return self.classifier.postprocess(self.windows, **self.result_params)

    def _check_unfinished(self) -> None:
        if self.is_finished:
            raise ValueError("This stream is finished. Make a new StreamTagger for another one.")

    def _tag(self, window: Window) -> dict[str, Any]:
        try:
            features = self.classifier.featurize(window, **self.feature_params)
        except ValueError as error:
            raise AudioError(f"<stream>: {error}") from error
        self.windows.append({"start": window.start, **self.classifier.forward(features)})
        row = {**self.windows[-1], "num_samples": window.stop}
        return self.classifier.postprocess([row], **{**self.result_params, "return_timeline": True})
