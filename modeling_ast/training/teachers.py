"""Teachers: models that say of a view, the augmented clip that a student gets, what they find in it."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.classifiers import label_order, load_classifier
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.functions import describe_fault, import_function, read_code
from modeling_ast.loading import ModelError
from modeling_ast.resampling import resample
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.collator import AugmentingCollator

logger = logging.getLogger(__name__)

# What is done to spectrograms, which who takes waveforms does not get.
_SPECTROGRAM_KEYS = ("freq_mask_bins", "time_mask_frames", "roll_frames", "max_noise")
_SUM_TOLERANCE = 0.01  # of a function's probabilities, which may come out of half precision


class ViewCollator:
    """Batches of views, as their student gets them, by the student's own steps.

    Args:
        collator: The student's.
        with_waveforms: Whether `waveforms` come along, float32 arrays of shape (samples,), cut as the spectrograms
            are, but with nothing that is done to these.
    """

    def __init__(self, collator: AugmentingCollator, with_waveforms: bool):
        self.collator, self.with_waveforms = collator, with_waveforms

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            `input_values`, and perhaps `attention_mask` and `waveforms`.
        """
        waveforms, extractor = self.collator.augmented_waveforms(rows), self.collator.extractor
        view, _ = self.collator.collate(waveforms, rows)
        if self.with_waveforms:
            samples = extractor.num_samples(extractor.max_length)
            # As arrays: of tensors a data worker would hand over each in a file of its own, of which few may be open.
            view["waveforms"] = [waveform[:samples].numpy() for waveform in waveforms]
        return view


class ASTTeacher:
    """A trained AST, of any size, strides, length and statistics.

    Where it computes the student's filter bank, it gets the student's spectrograms: normalised by its own statistics,
    and padded or cut to its own length. Else it gets the student's waveforms.

    Attributes:
        label_names: Of its outputs.
        takes_waveforms: Whether it does.

    Args:
        name: Folder or name on the Hub.
        student: The student's feature extractor.
        problem_type: Of the student.
        device: For the model.

    Raises:
        ModelError: A model that cannot be used, or has another problem type.
    """

    def __init__(self, name: str, student: ASTFeatureExtractor, problem_type: str, device: torch.device):
        model, self.extractor = load_classifier(name, problem_type)
        if model.config.problem_type != problem_type:
            raise ModelError(
                f"{name} cannot be used: expected a teacher of {problem_type}, got {model.config.problem_type}."
            )
        self.name, self.student, self.device = name, student, device
        self.label_names: list[str] | None = list(model.config.id2label.values())
        self.fingerprint = fingerprint_model(model, self.extractor)
        self.model = model.to(device).eval()
        own = self.extractor
        alike = ("sampling_rate", "num_mel_bins", "padding_value")
        has_same = type(own) is type(student) and all(getattr(own, key) == getattr(student, key) for key in alike)
        # One that takes clips at their own lengths has to know these.
        self.takes_waveforms = not has_same or (own.padding, student.padding) == ("longest", "max_length")
        if not self.takes_waveforms and own.max_length < student.max_length:
            logger.warning(f"{name} gets the first {own.max_length} frames of each view of {student.max_length}.")

    def __call__(self, view: Mapping[str, Any]) -> torch.Tensor:
        """Probabilities (batch, labels)."""
        inputs = self._from_waveforms(view) if self.takes_waveforms else self._from_spectrograms(view)
        logits = self.model(**{key: tensor.to(self.device) for key, tensor in inputs.items()}).logits.float()
        is_multi_label = self.model.config.problem_type == "multi_label_classification"
        return logits.sigmoid() if is_multi_label else logits.softmax(dim=-1)

    def _from_waveforms(self, view: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        waveforms = _resampled(view["waveforms"], self.student, self.extractor.sampling_rate)
        return self.extractor(waveforms, return_tensors="pt", max_length=self.extractor.max_length)

    def _from_spectrograms(self, view: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        own, student = self.extractor, self.student
        features, mask = view["input_values"], view.get("attention_mask")
        if any(getattr(own, key) != getattr(student, key) for key in ("do_normalize", "mean", "std")):
            features = features * (2 * student.std) + student.mean if student.do_normalize else features
            features = own.normalize(features) if own.do_normalize else features
        features = features[:, : own.max_length]
        if mask is not None:
            mask = mask[:, : own.max_length]
        if own.padding == "longest":
            return {"input_values": features, "attention_mask": mask}
        padding = torch.tensor(own.padding_value)
        padding = (own.normalize(padding) if own.do_normalize else padding).item()
        if mask is not None:
            features = features.masked_fill(mask.unsqueeze(-1) == 0, padding)
        missing = own.max_length - features.shape[1]
        return {"input_values": F.pad(features, (0, 0, 0, missing), value=padding)}


class FunctionTeacher:
    """A Python function, `module:function`: whatever model it runs.

    It gets a list of waveforms, float32 arrays of shape (samples,), at the rate that its attribute `sampling_rate`
    names, in Hz. Where it has an attribute `labels`, their names, it gives probabilities, an array of shape
    (waveforms, labels); else embeddings, (waveforms, size).

    Attributes:
        label_names: As it names them; `None` of embeddings.
        takes_waveforms: True.

    Args:
        name: Of the function.
        student: The student's feature extractor.
        problem_type: Of the student.

    Raises:
        RecipeError: There is no such function.
        ModelError: It does not say its rate.
    """

    takes_waveforms = True

    def __init__(self, name: str, student: ASTFeatureExtractor, problem_type: str):
        self.name, self.student, self.problem_type = name, student, problem_type
        self.function = import_function(name, "--teachers")
        self.sampling_rate = getattr(self.function, "sampling_rate", None)
        if not isinstance(self.sampling_rate, Integral) or self.sampling_rate < 1:  # numpy's too
            raise ModelError(
                f"{name} cannot be used: expected a function with an attribute sampling_rate, in Hz, got "
                f"{self.sampling_rate}."
            )
        self.sampling_rate = int(self.sampling_rate)
        labels = getattr(self.function, "labels", None)
        self.label_names = None if labels is None else list(map(str, labels))
        if self.label_names is not None and len(set(self.label_names)) < len(self.label_names):
            raise ModelError(f"{name} cannot be used: expected each label once in its attribute labels.")
        self.size: int | None = None if labels is None else len(self.label_names)  # of embeddings, of the first ones
        settings = repr((self.sampling_rate, self.label_names)).encode()
        self.fingerprint = hashlib.sha256(settings + read_code(name)).hexdigest()

    def __call__(self, view: Mapping[str, Any]) -> torch.Tensor:
        """Probabilities (batch, labels), or embeddings (batch, size).

        Raises:
            ModelError: The function fails, or gives something else.
        """
        waveforms = _resampled(view["waveforms"], self.student, self.sampling_rate)
        waveforms = [each.numpy().copy() for each in waveforms]  # to do with as it likes
        try:
            output = torch.as_tensor(np.asarray(self.function(waveforms), dtype=np.float32))
        except Exception as error:
            raise ModelError(f"{self.name} has failed ({describe_fault(error)}).") from error
        if output.ndim != 2 or len(output) != len(waveforms) or self.size not in (None, output.shape[1]):
            raise ModelError(
                f"{self.name}: expected an array of shape ({len(waveforms)}, {self.size or 'size'}) for "
                f"{len(waveforms)} waveforms, got {tuple(output.shape)}."
            )
        self.size = output.shape[1]
        if not output.isfinite().all():
            raise ModelError(f"{self.name}: expected finite numbers, got NaN or infinite ones.")
        if self.label_names is not None:
            is_sum_1 = (output.sum(dim=1) - 1).abs().max() <= _SUM_TOLERANCE
            if output.min() < 0 or output.max() > 1 + _SUM_TOLERANCE:
                raise ModelError(f"{self.name}: expected probabilities, got numbers outside of [0, 1].")
            if self.problem_type == "single_label_classification" and not is_sum_1:
                raise ModelError(f"{self.name}: expected probabilities that sum to 1 for one label a clip.")
        return output


class Teachers:
    """One teacher, or several, whose probabilities are averaged.

    Attributes:
        label_names: Of the columns of their probabilities; `None` of embeddings.

    Args:
        names: Of folders, on the Hub, or of functions.
        student: The student's feature extractor.
        problem_type: Of the student.
        label_names: Of the data; none takes those of the first teacher.
        device: For the models.

    Raises:
        ModelError: A teacher that cannot be used, or has other labels; embeddings of one of several.
        RecipeError: A function that is not there.
    """

    def __init__(
        self,
        names: Sequence[str],
        student: ASTFeatureExtractor,
        problem_type: str,
        label_names: Sequence[str],
        device: torch.device,
    ):
        self.members: list[ASTTeacher | FunctionTeacher] = []
        for name in names:
            if re.fullmatch(r"[\w.]+:[\w.]+", name) and not Path(name).exists():
                self.members.append(FunctionTeacher(name, student, problem_type))
            else:
                self.members.append(ASTTeacher(name, student, problem_type, device))
        without = [member.name for member in self.members if member.label_names is None]
        if without and len(self.members) > 1:
            raise ModelError(f"Expected teachers with labels to average, got {without[0]}, which gives embeddings.")
        self.label_names = None if without else list(label_names) or self.members[0].label_names
        self._orders = []
        for member in self.members if self.label_names is not None else ():
            try:
                self._orders.append(label_order(dict(enumerate(member.label_names)), self.label_names))
            except ValueError as error:
                raise ModelError(f"{member.name} cannot be used: {error}") from error

    @property
    def take_waveforms(self) -> bool:
        return any(member.takes_waveforms for member in self.members)

    def describe(self) -> list[str]:
        """What tells them from others."""
        return [f"{member.name} ({member.fingerprint[:12]})" for member in self.members]

    def tell_what_they_lack(self, augment: AugmentArguments) -> None:
        """Of each view, those of them that do not take its spectrogram."""
        lacking = [key for key in _SPECTROGRAM_KEYS if getattr(augment, key)]
        for member in self.members if lacking else ():
            if member.takes_waveforms:
                logger.warning(
                    f"{member.name} gets the waveform of each view, without what is done to its spectrogram "
                    f"({', '.join(lacking)})."
                )

    def __call__(self, view: Mapping[str, Any]) -> torch.Tensor:
        """Their mean probabilities (batch, num_labels), or the embeddings (batch, size) of the only one."""
        if self.label_names is None:
            return self.members[0](view)
        total = sum(member(view).cpu()[:, order] for member, order in zip(self.members, self._orders))
        return total / len(self.members)


def _resampled(
    waveforms: Sequence[np.ndarray], student: ASTFeatureExtractor, sampling_rate: int
) -> list[torch.Tensor]:
    return [resample(torch.from_numpy(each), student.sampling_rate, sampling_rate) for each in waveforms]
