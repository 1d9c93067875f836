"""A function of the user's own that makes another waveform of each training clip, with draws that repeat."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.functions import describe_fault, import_function
from modeling_ast.data.recipes import RecipeError
from modeling_ast.samples import to_float32, to_native

KEY = "waveform_transform"


class WaveformTransform:
    """Calls a function with each clip's waveform and its sampling rate, and takes the waveform that it returns.

    While it is called, the generators that `random`, `numpy.random` and `torch` have for all draw by a seed of the
    clip's own, and go on afterwards as if it had not been.

    Args:
        name: `module:function`.
        extractor: Whose sampling rate the waveforms have, and which takes those of at least one window.
    """

    def __init__(self, name: str, extractor: ASTFeatureExtractor):
        self.name, self.extractor = name, extractor

    def __call__(self, row: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """
        Args:
            row: With `waveform`, of shape (samples,), and the `path` of the clip.
            generator: Of the clip, of which the seed is drawn.

        Raises:
            RecipeError: The function fails, or returns no waveform.
        """
        # By its name, since not all that can be called can be sent to a data worker.
        function, clip = import_function(self.name, KEY), row.get("path") or "a clip"
        try:
            with _seeded(int(torch.randint(2**32, (), generator=generator))):
                changed = function(row["waveform"].numpy().copy(), self.extractor.sampling_rate)
            found = np.array(changed)
            if found.dtype.kind in "iu":  # PCM
                found = to_float32(torch.from_numpy(to_native(found)), "a waveform").numpy()
            found = np.array(found, dtype=np.float32)
        except Exception as error:
            raise RecipeError(f"{KEY} {self.name} has failed on {clip} ({describe_fault(error)}).") from error
        minimum = self.extractor.frame_length
        has_shape = found.ndim == 1 and found.size >= minimum
        if not has_shape or not np.isfinite(found).all():
            got = "others" if has_shape else f"the shape {found.shape}"
            raise RecipeError(
                f"Expected {KEY} {self.name} to return a waveform, an array of shape (samples,) of at least {minimum} "
                f"finite numbers, got {got} for {clip}."
            )
        return {**row, "waveform": torch.from_numpy(found)}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not those of GPUs, which draw for the model
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
