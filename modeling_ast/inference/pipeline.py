"""`pipeline("audio-classification")` for whole recordings: windows, timelines."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import pipeline
from transformers.pipelines.base import ChunkPipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, AudioError
from modeling_ast.data.scores import SCORE_FUNCTIONS, score_function, to_scores
from modeling_ast.data.unknown import UNKNOWN, can_be_unknown, with_unknown
from modeling_ast.feature_extraction_ast import PADDINGS
from modeling_ast.inference.recordings import Recording, read_recording, recording_name
from modeling_ast.inference.tags import choose_tags
from modeling_ast.inference.timeline import Timeline, is_number
from modeling_ast.inference.windows import Window, WindowCutter, WindowDataset, collate_windows, is_indexed
from modeling_ast.loading import check_mel_bins, load_model

_WINDOW_KEYS = ("chunk_length_s", "stride_length_s", "padding", "on_error", "ignore_length")
_LOADING_KEYS = ("revision", "token", "dtype", "device_map", "trust_remote_code", "local_files_only")
_RESULT_KEYS = ("top_k", "function_to_apply", "threshold", "aggregate", "return_timeline")
# What some of them can be.
_CHOICES = {
    "padding": (None, *PADDINGS),
    "function_to_apply": (None, *SCORE_FUNCTIONS),
    "aggregate": ("mean", "max"),
    "on_error": ("raise", "return"),
    "ignore_length": (True, False),
    "return_timeline": (True, False),
}


class ASTAudioClassificationPipeline(ChunkPipeline):
    """What Transformers' audio-classification pipeline does, and for recordings of any length.

        classifier = pipeline("audio-classification", "outputs/demo", pipeline_class=ASTAudioClassificationPipeline)
        classifier("street.wav", return_timeline=True)

    A recording no longer than the model's `max_length` is tagged as by Transformers' own pipeline, with the same
    scores (other ones where the extractor's padding is "longest", which Transformers ignores). A longer one is cut
    into overlapping windows, batched through the model (`batch_size`), and read in blocks (in `num_workers`
    processes). WAV, FLAC, OGG and MP3 need no ffmpeg.

    A model with `config.unknown_threshold` has one label more here, `unknown`: 1 in a window of none of the labels,
    which are 0 there. Its score in a recording is its share of the time, with either aggregate; where that is all of
    it, it is the only tag. `config.unknown_threshold = None` switches it off.

    All keywords can be given when the pipeline is made, and again at a call:

        top_k: How many labels, best first; `None` for all.
        function_to_apply: "softmax", "sigmoid" or "none"; `None` goes by the model's problem type.
        threshold: Leave out labels with lower scores: one number, or some by label. `None` means the thresholds that
            were fitted to the model (`config.thresholds`), if any; the best label of a softmax stays all the same. 0
            switches those off too.
        chunk_length_s: Length of a window in seconds; `None` means the model's `max_length`.
        stride_length_s: Overlap of a window on its left and right, in seconds: one number, or two. `None` means a
            sixth of the window on each side. Windows start every `chunk_length_s - left - right`, which is the hop of
            the timeline.
        padding: "max_length" or "longest" as in the feature extractor. `None`: a recording that fits into one window
            of the model's own length gets the extractor's padding; all others stay at their windows' own lengths.
            With windows longer than the model's `max_length` only "longest" or `None` can be.
        aggregate: Score of a recording: "mean" over its windows, each by the time that it covers, or "max".
        return_timeline: Whether a result is a dictionary with `tags` (what is a result otherwise) and `timeline` (see
            `Timeline`).
        on_error: "raise", or "return" to get `{"error": message}` for a recording that cannot be used, so that the
            others of a list go on.
        ignore_length: Whether a file that announces more sound than it holds, or less, is read as far as it goes.

    Raises:
        TypeError: An unknown keyword, or a model object of Transformers' own class.
        ValueError: A keyword with a value that cannot work, or a feature extractor with other mel bins than the model.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "adapt_geometry"):
            raise TypeError(
                f"Expected modeling_ast.ASTForAudioClassification, got {type(self.model).__module__}."
                f"{type(self.model).__name__}: name the model by its folder or repository, or load it by "
                "AutoModelForAudioClassification beside modeling_ast."
            )
        if not hasattr(self.feature_extractor, "mask_frames"):  # Transformers' own, which has the same features
            self.feature_extractor = ASTFeatureExtractor.from_dict(self.feature_extractor.to_dict())
        check_mel_bins(self.model, self.feature_extractor)
        self.model.eval()  # a model that comes from its training would drop at random
        self.on_window = None  # called with the index of a recording and the seconds of it that were covered so far
        self._check_processes(1 if self._batch_size is None else self._batch_size, self._num_workers or 0)
        self._check_windows(self._preprocess_params)

    def __call__(self, inputs: Recording | list[Recording], **kwargs) -> Any:
        """Tag one recording, or a list, generator or data set of them.

        Args:
            inputs: See `read_recording` for what a recording can be.
            **kwargs: See the class; and `batch_size` (windows at a time) and `num_workers` (processes that read; 0
                means this one). Each process reads whole recordings, so that one recording alone is read by one. With
                processes a generator is read to its end first, since they share out what it gives.

        Returns:
            `[{"score": ..., "label": ...}, ...]`, best first, or with `return_timeline` a dictionary; a list of these
            for a list or tuple, an iterator of them for a generator or a data set.

        Raises:
            AudioError: A recording that cannot be used. Of several, those before it have their results; an iterator
                gives them first.
            TypeError: An unknown keyword.
            ValueError: A keyword with a value that cannot work.
        """
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, (list, KeyDataset)) and not len(inputs):  # Transformers would look at the first one
            return [] if isinstance(inputs, list) else iter(())
        return super().__call__(inputs, **kwargs)

    def compute_in(self, dtype: str | None) -> None:
        """Go on in another precision.

        Args:
            dtype: "float32", "bfloat16" or "float16"; "int8", which is `Int8ForAudioClassification`; `None` for none.

        Raises:
            ModelError, ImportError: As from there.
        """
        if dtype == "int8":
            from modeling_ast.inference.int8_model import Int8ForAudioClassification

            self.model = Int8ForAudioClassification(self.model, self.feature_extractor)
        elif dtype is not None:
            self.model.to(getattr(torch, dtype))

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        for key, value in kwargs.items():
            if key not in _WINDOW_KEYS + _RESULT_KEYS:
                meant = difflib.get_close_matches(key, _WINDOW_KEYS + _RESULT_KEYS, n=1)
                hint = f" Is {meant[0]!r} meant?" if meant else ""
                raise TypeError(f"{type(self).__name__} has no keyword {key!r}.{hint}")
            _check_keyword(key, value)
        labels = self.model.config.id2label.values()
        if isinstance(threshold := kwargs.get("threshold"), Mapping):
            if unknown := [label for label in threshold if label not in labels]:
                raise ValueError(f"Expected a threshold for labels of the model, got {unknown[0]!r}.")
        window_params = {key: kwargs[key] for key in _WINDOW_KEYS if key in kwargs}
        return window_params, {}, {key: kwargs[key] for key in _RESULT_KEYS if key in kwargs}

    # A recording to windows.

    def window_cutter(self, chunk_length_s: float | None = None, stride_length_s: Any = None) -> WindowCutter:
        """What cuts a recording into the windows of these keywords.

        The model's own window is the longest sound of which it takes all: `max_length` frames, and what is left over
        behind the last one.

        Raises:
            ValueError: A window of less than one patch, or strides that leave nothing of it.
        """
        rate, extractor = self.feature_extractor.sampling_rate, self.feature_extractor
        shortest = extractor.num_samples(extractor.min_length)
        if chunk_length_s is None:
            length = extractor.max_samples(extractor.max_length)
        else:
            length = round(chunk_length_s * rate)
        if length < shortest:
            raise ValueError(
                f"Expected chunk_length_s of at least {shortest / rate:g} s, one patch, got {chunk_length_s}."
            )
        if stride_length_s is None:
            left = right = length // 6
        else:
            strides = stride_length_s if isinstance(stride_length_s, (tuple, list)) else (stride_length_s,) * 2
            left, right = (round(stride * rate) for stride in strides)
        if min(left, right) < 0 or left + right >= length:
            raise ValueError(
                f"Expected stride_length_s of at least 0 and, left and right together, below the window of "
                f"{length / rate:g} s, got {stride_length_s}."
            )
        return WindowCutter(length, left, right, shortest)

    def _check_windows(self, params: Mapping[str, Any]) -> None:
        """Raise a ValueError where keywords do not go together, before anything is read."""
        chunk_length_s = params.get("chunk_length_s")
        cutter = self.window_cutter(chunk_length_s, params.get("stride_length_s"))
        if params.get("padding") == "max_length" and cutter.length > self.window_cutter().length:
            raise ValueError(
                f"Expected padding 'longest' or None for windows of {chunk_length_s} s, of which 'max_length' would "
                "leave no more than the model's own length, got 'max_length'."
            )

    @staticmethod
    def _check_processes(batch_size: Any, num_workers: Any) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not is_whole(value, least):
                raise ValueError(f"Expected {name} to be a whole number of at least {least}, got {value!r}.")

    def window_keywords(self, window: float | None = None, hop: float | None = None) -> dict[str, Any]:
        """What the pipeline calls a window and a hop.

        Args:
            window: Seconds taken at once; `None` means the model's `max_length`.
            hop: Seconds from the start of a window to the start of the next; `None` means the pipeline's own.

        Returns:
            `chunk_length_s` and, with a hop, `stride_length_s`: half of the overlap on either side.

        Raises:
            ValueError: A window of less than one patch, or a hop that would leave sound out.
        """
        extractor = self.feature_extractor
        rate, shortest = extractor.sampling_rate, extractor.num_samples(extractor.min_length)
        if window is not None and not shortest / rate <= window < float("inf"):
            raise ValueError(
                f"Expected a window of at least {shortest / rate:g} s, which is one patch, got {window:g} s."
            )
        length = self.window_cutter(window).length
        if hop is None:
            return {"chunk_length_s": window}
        if not 1 <= hop * rate <= length:
            raise ValueError(f"Expected a hop above 0 and of at most the window, {length / rate:g} s, got {hop:g} s.")
        overlap = length - round(hop * rate)
        return {"chunk_length_s": window, "stride_length_s": (overlap // 2 / rate, (overlap - overlap // 2) / rate)}

    def featurize(
        self, window: Window, chunk_length_s: float | None = None, padding: str | None = None
    ) -> dict[str, torch.Tensor]:
        """One window to `input_values` (1, frames, mel bins) and `attention_mask` (1, frames).

        Raises:
            ValueError: Too short for one frame, or samples that are NaN, infinite or beyond all measure.
        """
        if padding is None:
            is_as_trained = window.is_whole_recording and chunk_length_s is None
            padding = self.feature_extractor.padding if is_as_trained else "longest"
        features = self.feature_extractor(window.waveform, return_tensors="pt", padding=padding)
        if not torch.isfinite(features["input_values"]).all():
            raise ValueError(f"Expected floats in [-1, 1], got up to {window.waveform.abs().max():g}.")
        if padding == "max_length":  # padding that the model attends to, as the original does
            features["attention_mask"] = torch.ones(features["input_values"].shape[:2], dtype=torch.long)
        return dict(features)

    def preprocess(
        self,
        source: Recording,
        chunk_length_s: float | None = None,
        stride_length_s: Any = None,
        padding: str | None = None,
        on_error: str = "raise",
        ignore_length: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """The windows of a recording: features, `start`, and with the last one `num_samples` of the recording.

        Raises:
            AudioError: A recording that cannot be used, unless `on_error` is "return".
        """
        cutter = self.window_cutter(chunk_length_s, stride_length_s)
        try:
            previous = None
            pieces = read_recording(source, self.feature_extractor.sampling_rate, ignore_length)
            for window in cutter.cut(pieces):
                if previous is not None:
                    yield {**previous, "num_samples": None}
                previous = {**self.featurize(window, chunk_length_s, padding), "start": window.start}
            if previous is None:
                raise AudioError("holds no samples.")
            yield {**previous, "num_samples": cutter.num_samples}
        except (ValueError, OSError) as error:  # AudioError, and what the feature extractor or the system refuses
            name, message = recording_name(source), str(error)
            message = message if message.startswith(f"{name}: ") else f"{name}: {message}"
            if on_error == "raise":
                raise AudioError(message) from error
            yield {"error": message}

    # Windows through the model, and back to recordings.

    def get_iterator(
        self,
        inputs: Iterable,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        """Results in the order of the inputs; windows of several recordings share a batch.

        In place of Transformers' own, which reads in one process at the most and cannot go on after an error.
        """
        self._check_processes(batch_size, num_workers)
        self._check_windows(preprocess_params)
        # Each process would run through a generator of its own, and what they share, such as a file, would be torn.
        if num_workers and not is_indexed(inputs):
            inputs = list(inputs)
        # An error of another process would come with the traceback of that process.
        windows = WindowDataset(inputs, self.preprocess, {**preprocess_params, "on_error": "return"})
        loader = DataLoader(windows, batch_size=batch_size, num_workers=num_workers, collate_fn=collate_windows)
        results = self._run_windows(loader, forward_params, postprocess_params)
        return results if preprocess_params.get("on_error") == "return" else _raise_errors(results, inputs)

    def _run_windows(self, loader: DataLoader, forward_params: dict, postprocess_params: dict) -> Iterator[Any]:
        collected, results, next_index = {}, {}, 0
        for items, batch in loader:
            outputs = iter(_split(self.forward(batch, **forward_params))) if batch else iter(())
            for index, item in items:
                if "error" in item:
                    collected.pop(index, None)
                    results[index] = item
                    continue
                collected.setdefault(index, []).append({**item, **next(outputs)})
                if self.on_window is not None:
                    self.on_window(index, item["start"] / self.feature_extractor.sampling_rate)
                if item["num_samples"] is not None:
                    results[index] = self.postprocess(collected.pop(index), **postprocess_params)
            while next_index in results:
                yield results.pop(next_index)
                next_index += 1

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not can_be_unknown(self.model.config):
            return {"logits": self.model(**model_inputs).logits.float()}
        pooled = self.model.base_model(**model_inputs, only_pooled=True, return_dict=True).pooler_output
        head = self.model.classifier
        return {"logits": head(pooled).float(), "distance": head.measure_distance(pooled)}

    def postprocess(
        self,
        windows: list[dict[str, Any]],
        top_k: int | None = 5,
        function_to_apply: str | None = None,
        threshold: float | Mapping[str, float] | None = None,
        aggregate: str = "mean",
        return_timeline: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """The result of a recording, from its windows with their `logits` (1, labels)."""
        config, id2label = self.model.config, self.model.config.id2label  # 527 look-ups of an attribute take 2 ms
        label_names = [id2label[index] for index in range(config.num_labels)]
        # Fitted thresholds are those of the scores that the model's problem type gives.
        is_own = function_to_apply in (None, score_function(config.problem_type))
        function_to_apply = function_to_apply or score_function(config.problem_type)
        fitted = config.thresholds or {} if is_own else {}
        fitted = {label: value for label, value in fitted.items() if label in label_names}
        logits = torch.cat([window["logits"] for window in windows]).numpy()  # (windows, labels)
        scores = to_scores(logits, function_to_apply)
        if tells_unknown := is_own and can_be_unknown(config):
            distances = torch.cat([window["distance"] for window in windows]).numpy()
            scores, label_names = with_unknown(scores, distances > config.unknown_threshold), [*label_names, UNKNOWN]
        timeline = Timeline(
            boundaries=np.array([*(window["start"] for window in windows), windows[-1]["num_samples"]]),
            scores=scores,
            label_names=label_names,
            sampling_rate=self.feature_extractor.sampling_rate,
            thresholds=fitted,
        )
        # One label of a softmax is the answer, however low the score; of sigmoids there may be none.
        at_least_one = threshold is None and function_to_apply == "softmax"
        tags = choose_tags(timeline, aggregate, threshold, top_k, at_least_one, tells_unknown)
        return {"tags": tags, "timeline": timeline} if return_timeline else tags


def audio_tagger(model: str | os.PathLike[str], **kwargs: Any) -> ASTAudioClassificationPipeline:
    """The pipeline of a folder or a Hub repository, without more words.

    Args:
        model: Folder or Hub repository of an AST.
        **kwargs: Keywords of `transformers.pipeline` (`device`, `dtype`, ...) and of the pipeline. Code that the
            folder or repository brings runs with `trust_remote_code=True` alone; nobody is asked.

    Raises:
        ModelError: As from `load_model`.
        TypeError, ValueError: As from the pipeline.
    """
    return make_pipeline(
        "audio-classification", model, ASTForAudioClassification, ASTAudioClassificationPipeline, kwargs
    )


def make_pipeline(
    task: str, name: str | os.PathLike, model_class: type, pipeline_class: type, keywords: dict[str, Any]
) -> Any:
    """A pipeline of a model that `load_model` has checked, which Transformers' own way of loading one does not.

    Args:
        task: Transformers' name of it.
        name: Folder or Hub repository.
        model_class: `ASTForAudioClassification` or `ASTModel`.
        pipeline_class: Of this package.
        keywords: Of `transformers.pipeline` and of the pipeline.

    Raises:
        ModelError, TypeError, ValueError: As from `load_model` and from the pipeline.
    """
    loading = {key: keywords.pop(key) for key in _LOADING_KEYS if key in keywords} | keywords.pop("model_kwargs", {})
    model, extractor = load_model(name, model_class, **loading)
    keywords = {"feature_extractor": extractor, **keywords}
    is_trusted = bool(loading.get("trust_remote_code"))  # of another feature extractor that is named, too
    return pipeline(task, model, pipeline_class=pipeline_class, trust_remote_code=is_trusted, **keywords)


def _raise_errors(results: Iterator[Any], inputs: Iterable) -> Iterator[Any]:
    with closing(results):  # and so the processes that read, which otherwise live as long as the error is held
        for index, result in enumerate(results):
            if isinstance(result, Mapping) and "error" in result:
                is_alone = is_indexed(inputs) and len(inputs) == 1
                raise AudioError(result["error"] if is_alone else f"Recording {index}, {result['error']}")
            yield result


def _split(outputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Outputs of a batch, a window at a time."""
    names, tensors = zip(*outputs.items())
    return [dict(zip(names, rows)) for rows in zip(*(tensor.split(1) for tensor in tensors))]


def is_whole(value: Any, least: int) -> bool:
    """Whether a value that a user gives is a whole number of at least so much."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _check_keyword(key: str, value: Any) -> None:
    """Refuse a value that a keyword of the pipeline cannot have."""
    if choices := _CHOICES.get(key):
        is_possible = isinstance(value, (str, bool, type(None))) and value in choices
        words = f"one of {', '.join(map(str, choices))}"
    elif value is None:
        return
    elif key == "top_k":
        is_possible, words = is_whole(value, 1), "a whole number above 0, or None for all labels"
    elif key == "chunk_length_s":
        is_possible, words = is_number(value) and value > 0, "a number of seconds above 0"
    elif key == "stride_length_s":
        strides = value if isinstance(value, (tuple, list)) else (value, value)
        is_possible = len(strides) == 2 and all(map(is_number, strides))
        words = "a number of seconds, or two of them"
    else:
        is_possible = all(map(is_number, value.values() if isinstance(value, Mapping) else (value,)))
        words = "a finite number, or such numbers by label"
    if not is_possible:
        raise ValueError(f"Expected {key} to be {words}, got {value!r}.")
