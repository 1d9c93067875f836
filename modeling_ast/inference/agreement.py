"""Comparison of an exported graph with its model: whether the scores are the same, and how fast both are."""

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.audio import AudioError, load_waveform
from modeling_ast.data.scores import score_function, to_scores
from modeling_ast.inference.export import open_graph
from modeling_ast.inference.timeline import DEFAULT_THRESHOLD

# How far scores of the graph may be from the model's.
TOLERANCE = 1e-3
# How many of the model's answers an 8-bit graph should give, and is else warned of.
MIN_AGREEMENT = 0.99


def model_function(
    model: ASTForAudioClassification, extractor: ASTFeatureExtractor, padding: str
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Clips (samples,) to scores (clips, num_labels), by feature extractor and model: what a graph has to give."""
    model = copy.deepcopy(model).float().cpu().eval()
    function = score_function(model.config.problem_type)

    def run(clips: Sequence[np.ndarray]) -> np.ndarray:
        features = extractor(list(clips), sampling_rate=extractor.sampling_rate, return_tensors="pt", padding=padding)
        with torch.inference_mode():
            logits = model(**features).logits.numpy()
        return to_scores(logits, function)

    return run


def graph_function(path: str | os.PathLike, num_threads: int) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """The same by a graph; clips of different lengths in one batch need one that was exported with lengths."""
    session = open_graph(path, num_threads)

    def run(clips: Sequence[np.ndarray]) -> np.ndarray:
        lengths = np.array([len(clip) for clip in clips])
        inputs = {"waveform": np.stack([np.pad(clip, (0, lengths.max() - len(clip))) for clip in clips])}
        if len(session.get_inputs()) > 1:
            inputs["num_samples"] = lengths
        return session.run(["scores"], inputs)[0]

    return run


def logits_function(
    path: str | os.PathLike, extractor: ASTFeatureExtractor, num_threads: int
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """The same by a graph of `export_logits_onnx`, between the feature extractor and a softmax."""
    session = open_graph(path, num_threads)

    def run(clips: Sequence[np.ndarray]) -> np.ndarray:
        rate = extractor.sampling_rate
        features = extractor(list(clips), sampling_rate=rate, return_tensors="np", padding="max_length")
        (logits,) = session.run(["logits"], {"input_values": features["input_values"]})
        return to_scores(logits, "softmax")

    return run


def agreement_measure(config: ASTConfig) -> tuple[str, Callable[[np.ndarray, np.ndarray], float]] | None:
    """What it means for two tables of scores to give the same answers, by the problem type.

    Returns:
        A name and a function of two arrays (clips, num_labels), which gives a share in [0, 1]. Of a softmax "equal
        top-1": of the clips, those with the same best label. Of several labels a clip "equal decisions": of the labels
        that either gives to a clip at the thresholds (`config.thresholds`, else 0.5), those that both give. (Of all
        decisions most say "absent", and would agree where every sound is missed.) `None` for a regression, which
        decides nothing.
    """
    function = score_function(config.problem_type)
    if function == "softmax":
        return "equal top-1", lambda expected, found: float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())
    if function == "none":
        return None
    fitted = config.thresholds or {}
    thresholds = np.array([fitted.get(config.id2label[i], DEFAULT_THRESHOLD) for i in range(config.num_labels)])

    def equal_decisions(expected: np.ndarray, found: np.ndarray) -> float:
        expected, found = expected >= thresholds, found >= thresholds
        either = (expected | found).sum()
        return float((expected & found).sum() / either) if either else 1.0

    return "equal decisions", equal_decisions


def compare(
    functions: Mapping[str, Callable[[Sequence[np.ndarray]], np.ndarray]],
    batches: Iterable[Sequence[np.ndarray]],
    agreement: Callable[[np.ndarray, np.ndarray], float] | None,
) -> dict[str, dict[str, float]]:
    """How far the other functions are from the first, and how fast all of them are.

    They take turns on each batch, so that whatever else the machine does slows them all alike.

    Args:
        functions: Each takes float32 clips (samples,) and gives scores (clips, num_labels).
        batches: Of clips.
        agreement: Of scores (clips, num_labels) of the first function and another's, as `agreement_measure` gives it.

    Returns:
        By the name of the function: `largest_difference` of a score, `agreement` (in [0, 1]; left out where there is
        no measure) and `clips_per_second`.
    """
    scores, seconds = {name: [] for name in functions}, dict.fromkeys(functions, 0.0)
    for index, batch in enumerate(batches):
        if index == 0:  # the first run allocates, and is not counted
            for function in functions.values():
                function(batch)
        for name, function in functions.items():
            start = time.perf_counter()
            scores[name].append(function(batch))
            seconds[name] += time.perf_counter() - start
    scores = {name: np.concatenate(parts) for name, parts in scores.items()}
    expected = scores[next(iter(functions))]
    return {
        name: {
            "largest_difference": float(np.abs(found - expected).max()),
            **({} if agreement is None else {"agreement": agreement(expected, found)}),
            "clips_per_second": len(expected) / seconds[name],
        }
        for name, found in scores.items()
    }


def comparison_table(results: Mapping[str, Mapping[str, float]], measure: str | None) -> str:
    """What `compare` gives, a row for the model and each graph; `measure` is the name of `agreement_measure`."""
    lines = [f"{'':6}{'largest difference':>20}{measure or '':>17}{'clips/s':>9}{'against fp32':>14}"]
    for name, row in results.items():
        agreement = f"{row['agreement']:.1%}" if measure else ""
        lines.append(
            f"{name:6}{row['largest_difference']:>20.1e}{agreement:>17}{row['clips_per_second']:>9.2f}"
            f"{_relative_speed(results, name):>13.2f}x"
        )
    return "\n".join(lines)


def int8_warnings(results: Mapping[str, Mapping[str, float]], clips: str, measure: str | None) -> list[str]:
    """Where 8 bits change the answers, or win no time, in a sentence each."""
    warnings = []
    if measure and not results["int8"]["agreement"] >= MIN_AGREEMENT:
        warnings.append(
            f"int8: {measure} {results['int8']['agreement']:.1%} on {clips}, below {MIN_AGREEMENT:.0%}: prefer the "
            "fp32 file where answers count, or measure on more of your own clips (--check)."
        )
    if (speed := _relative_speed(results, "int8")) < 1:
        warnings.append(f"int8: {speed:.2f} times the speed of fp32 on this machine: all that it saves is space.")
    return warnings


def _relative_speed(results: Mapping[str, Mapping[str, float]], name: str) -> float:
    return results[name]["clips_per_second"] / results["fp32"]["clips_per_second"]


def read_clips(
    paths: Iterable[Path], extractor: ASTFeatureExtractor, with_lengths: bool
) -> Iterator[list[np.ndarray]]:
    """Sound files, each a batch of its own, to compare on; with lengths in batches of two.

    Raises:
        AudioError: A file that cannot be read, or is shorter than a frame.
    """
    clips = []
    for path in tqdm(paths, desc="Comparing"):
        waveform = load_waveform(path, extractor.sampling_rate).numpy()
        if len(waveform) < extractor.frame_length:
            raise AudioError(f"{path}: expected at least 25 ms of sound, got {len(waveform)} samples.")
        clips.append(waveform)
        if len(clips) == 1 + with_lengths:
            yield clips
            clips = []
    if clips:
        yield clips


def generate_clips(extractor: ASTFeatureExtractor, with_lengths: bool) -> Iterator[list[np.ndarray]]:
    """Bursts of noise below, at and above the model's length, in batches of two; with lengths, of different ones."""
    generator = np.random.default_rng(0)
    for frames in (extractor.max_length // 2, extractor.max_length, extractor.max_length * 3 // 2):
        longest = extractor.num_samples(frames)
        clips = generator.standard_normal((2, longest)) * np.geomspace(0.3, 1e-4, longest)
        shorter = max(longest * 2 // 3, extractor.frame_length) if with_lengths else longest
        yield [clip[:length].astype(np.float32) for clip, length in zip(clips, (longest, shorter))]
