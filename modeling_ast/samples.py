"""Arrays, tensors and lists of samples to clips of float32."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def split_clips(raw_speech: Any) -> list[Any]:
    """One clip or many, in any form that a feature extractor takes, to a list of clips that are not yet checked.

    Raises:
        ValueError: Several channels, no clip, or something that holds none.
    """
    if isinstance(raw_speech, (torch.Tensor, np.ndarray)):
        if raw_speech.ndim > 2 or (raw_speech.ndim == 2 and raw_speech.shape[1] <= 8 < raw_speech.shape[0]):
            raise ValueError(
                "Expected one mono clip (samples,) or a batch of mono clips (batch, samples), got an array of "
                f"shape {tuple(raw_speech.shape)}, which looks like several channels. Average the channels first."
            )
        if isinstance(raw_speech, np.ndarray) and raw_speech.ndim == 2:
            # (2, samples) and (samples, 2) are what decoders return for stereo, and Transformers' own extractor
            # takes the former for two clips; a batch can be given as a list or as a tensor.
            raise ValueError(
                "Expected a mono clip (samples,) or a list of them, got a 2-D numpy array of shape "
                f"{raw_speech.shape}, which may be stereo. Average the channels, or give a batch as a list of "
                "clips or as a torch tensor."
            )
        clips = list(raw_speech) if raw_speech.ndim == 2 else [raw_speech]
    elif isinstance(raw_speech, Sequence) and not isinstance(raw_speech, (str, bytes)):
        is_batch = not len(raw_speech) or isinstance(raw_speech[0], (torch.Tensor, np.ndarray, Sequence))
        clips = list(raw_speech) if is_batch else [raw_speech]
    else:
        raise ValueError(
            f"Expected a waveform (array, tensor or list of numbers) or a list of waveforms, got "
            f"{type(raw_speech).__name__}. Read sound files with modeling_ast.load_waveform."
        )
    if not clips:
        raise ValueError("Expected at least one clip, got an empty batch.")
    return clips


def to_native(samples: np.ndarray) -> np.ndarray:
    """Numbers as torch takes them: floating point in float32, integers in this machine's byte order.

    torch takes neither arrays that run backwards, nor those of another byte order or of long doubles, nor, silently,
    read-only ones.
    """
    native = np.float32 if samples.dtype.kind == "f" else samples.dtype.newbyteorder("=")
    return np.require(samples, native, ["C", "W"])


def to_float32(waveform: torch.Tensor, which: str) -> torch.Tensor:
    """Integer PCM to float32 in [-1, 1]; floating point to float32 as it is.

    Args:
        waveform: Of any shape.
        which: What to call it in errors.

    Raises:
        ValueError: Integers of another type, whose full scale is not known.
    """
    if waveform.is_floating_point():
        return waveform.float()
    if waveform.dtype == torch.uint8:  # WAV's 8-bit samples are unsigned, with silence at 128
        return (waveform.float() - 128) / 128
    if waveform.dtype in (torch.int8, torch.int16, torch.int32):
        return (waveform.double() / -torch.iinfo(waveform.dtype).min).float()
    raise ValueError(
        f"Expected floats in [-1, 1] or PCM of type uint8, int8, int16 or int32, got {waveform.dtype} for {which}: "
        "its full scale is not known."
    )


def to_waveform(clip: Any, which: str, least: int, sampling_rate: int) -> torch.Tensor:
    """One clip to a checked 1-D float32 tensor.

    Args:
        clip: As `split_clips` gives it.
        which: What to call it in errors.
        least: Samples that it must have.
        sampling_rate: In Hz, for errors.

    Raises:
        ValueError: Several channels, an empty or too short clip, NaN or infinite samples, integers without a known
            full scale.
    """
    if not isinstance(clip, torch.Tensor):
        clip = np.asarray(clip)
        if clip.dtype.kind not in "fiu":
            raise ValueError(f"Expected numbers, got {clip.dtype} for {which}. load_waveform reads sound files.")
        clip = to_native(clip)
    waveform = torch.as_tensor(clip)
    if waveform.ndim != 1:
        raise ValueError(
            f"Expected mono clips of shape (samples,), got shape {tuple(waveform.shape)} for {which}. "
            "Average the channels first."
        )
    if waveform.numel() == 0:
        raise ValueError(f"Expected a clip with samples, but {which} is empty.")
    waveform = to_float32(waveform, which)
    if waveform.numel() < least:
        raise ValueError(
            f"Expected at least {least} samples (one window of 25 ms at {sampling_rate} Hz), got "
            f"{waveform.numel()} for {which}."
        )
    lowest, highest = torch.aminmax(waveform.detach())  # both are NaN where a sample is
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(f"Expected finite samples, but {which} holds NaN or infinite ones.")
    return waveform
