"""How far two ways to the same result are apart: features and logits, on one model and some clips.

A comparison is a small function of a subject that gives two tensors: what is expected, and what the other way gives.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torchaudio
from comparison import export_graphs, has_compiler
from measuring import threads
from torchaudio.compliance import kaldi
from transformers.models.audio_spectrogram_transformer import ASTForAudioClassification as StockModel

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.audio import to_waveform
from modeling_ast.fbank import fbank
from modeling_ast.inference.agreement import model_function
from modeling_ast.inference.export import require_onnx
from modeling_ast.inference.windows import WindowCutter
from modeling_ast.modeling_ast import MLP_TOKENS
from modeling_ast.resampling import StreamResampler

BATCH_SIZE = 8
FILE_RATE = 44100  # that clips are resampled from, in Hz
BLOCK_FRAMES = 20  # that arrive at once
DEVIATION = 2.0  # of a random model's logits, from clip to clip


class NotMeasured(Exception):
    """A comparison for which something is missing here. The message says what."""


@dataclass
class Subject:
    """What is compared on.

    Attributes:
        folder: Of the model, as saved; ours and Transformers' AST load it.
        model: From it, in float32 and evaluation mode.
        extractor: From it.
        clips: Waveforms (samples,) at the extractor's rate, not longer than its `max_length`.
        work_folder: Where graphs are written.
        may_compile: Whether there is time for torch.compile.
        inputs: Spectrograms of the clips, padded: (clips, max_length, num_mel_bins).
        expected: Logits of them, in float32 and batches.
    """

    folder: Path
    model: ASTForAudioClassification
    extractor: ASTFeatureExtractor
    clips: list[torch.Tensor]
    work_folder: Path
    may_compile: bool = False

    def __post_init__(self):
        self.inputs = padded_features(self.extractor, self.clips)
        self.expected = classify(self.model, self.inputs)

    @cached_property
    def graphs(self) -> dict[str, Callable]:
        """The model as ONNX, "fp32" and "int8"."""
        try:
            require_onnx()
        except ImportError as error:
            raise NotMeasured(str(error)) from error
        return export_graphs(self.model, self.extractor, self.work_folder, num_threads=1)

    def require_compiler(self) -> None:
        if not self.may_compile:
            raise NotMeasured("needs --compile")
        if not has_compiler():
            raise NotMeasured("no C++ compiler")


def random_model(extractor: ASTFeatureExtractor, clips: list[torch.Tensor]) -> ASTForAudioClassification:
    """A model of size tiny224 with ten labels, always the same, that does not hear the same in all clips.

    Fresh weights give almost the same logits whatever they hear, and then the best label says nothing.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        sizes = {"max_length": extractor.max_length, "num_mel_bins": extractor.num_mel_bins, "num_labels": 10}
        model = ASTForAudioClassification(ASTConfig.from_size("tiny224", **sizes)).eval()
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
        logits = classify(model, padded_features(extractor, clips))
        dense, mean = model.classifier.dense, logits.mean(dim=0)
        scale = DEVIATION / (logits - mean).std()
        dense.weight *= scale
        dense.bias.copy_((dense.bias - mean) * scale)
    return model


def padded_features(extractor: ASTFeatureExtractor, clips: list[torch.Tensor]) -> torch.Tensor:
    """Spectrograms (clips, max_length, num_mel_bins)."""
    return extractor(clips, padding="max_length", return_tensors="pt")["input_values"]


@torch.inference_mode()
def classify(
    model: torch.nn.Module, inputs: torch.Tensor, masks: torch.Tensor | None = None, batch_size: int = BATCH_SIZE
) -> torch.Tensor:
    """Logits (clips, num_labels) of spectrograms, so many at a time."""
    batches = inputs.split(batch_size)
    options = [{}] * len(batches) if masks is None else [{"attention_mask": mask} for mask in masks.split(batch_size)]
    return torch.cat([model(batch, **kwargs).logits for batch, kwargs in zip(batches, options, strict=True)])


# Features: (values, of all clips)

Pair = tuple[torch.Tensor, torch.Tensor]


def log_mel(subject: Subject, clips: list[torch.Tensor]) -> torch.Tensor:
    """All values of the clips' features, before normalisation, each clip alone."""
    return torch.cat([spectrogram for clip in clips for spectrogram in subject.extractor.fbank([clip])])


def features_in_a_batch(subject: Subject) -> Pair:
    length = min(map(len, subject.clips))  # clips of different lengths are computed one by one anyway
    clips = [clip[:length] for clip in subject.clips]
    return log_mel(subject, clips), torch.cat(subject.extractor.fbank(clips))


def features_by_two_threads(subject: Subject) -> Pair:
    with threads(1):
        expected = log_mel(subject, subject.clips)
    with threads(2):
        return expected, log_mel(subject, subject.clips)


def features_in_blocks(subject: Subject) -> Pair:
    """As by a stream: windows that share the samples which frames at their edges share."""
    extractor = subject.extractor
    length, pieces = extractor.num_samples(BLOCK_FRAMES), []
    shared = length - BLOCK_FRAMES * extractor.frame_shift
    for clip in subject.clips:
        cutter = WindowCutter(length, 0, shared, extractor.frame_length)
        windows = [window for piece in clip.split(1000) for window in cutter.push(piece)] + cutter.finish()
        pieces += [window.waveform for window in windows]
    return log_mel(subject, subject.clips), log_mel(subject, pieces)


def features_by_torchaudio(subject: Subject) -> Pair:
    options = {"window_type": "hanning", "use_energy": False, "num_mel_bins": subject.extractor.num_mel_bins}
    options["sample_frequency"] = subject.extractor.sampling_rate
    return torch.cat([kaldi.fbank(clip[None], **options) for clip in subject.clips]), log_mel(subject, subject.clips)


def features_in_float32(subject: Subject) -> Pair:
    sizes = (subject.extractor.sampling_rate, subject.extractor.num_mel_bins)
    exact = torch.cat([fbank(clip.double(), *sizes) for clip in subject.clips])
    return exact, log_mel(subject, subject.clips)


def resampled_in_pieces(subject: Subject) -> Pair:
    rate, pieces = subject.extractor.sampling_rate, []
    for clip in subject.clips:
        resampler = StreamResampler(FILE_RATE, rate)
        pieces += [*map(resampler.push, clip.split(1000)), resampler.finish()]
    return resampled(subject), torch.cat(pieces)


def resampled_by_torchaudio(subject: Subject) -> Pair:
    rate = subject.extractor.sampling_rate
    theirs = torch.cat([torchaudio.functional.resample(clip, FILE_RATE, rate) for clip in subject.clips])
    return theirs, resampled(subject)


def resampled(subject: Subject) -> torch.Tensor:
    """Waveforms of the clips as if they came from files of another rate."""
    rate = subject.extractor.sampling_rate
    return torch.cat([to_waveform(clip.unsqueeze(1), FILE_RATE, rate) for clip in subject.clips])


# Logits: (clips, num_labels)


def another_time(subject: Subject) -> Pair:
    return subject.expected, classify(subject.model, subject.inputs)


def two_threads(subject: Subject) -> Pair:
    with threads(1):
        expected = classify(subject.model, subject.inputs)
    with threads(2):
        return expected, classify(subject.model, subject.inputs)


def variant(subject: Subject, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> torch.Tensor:
    """Logits of the model in another precision, or with another implementation of attention."""
    model = copy.deepcopy(subject.model).to(dtype)
    model.set_attn_implementation(attention)
    return classify(model, subject.inputs)


def another_dtype(subject: Subject, expected: torch.dtype, found: torch.dtype) -> Pair:
    return variant(subject, expected), variant(subject, found)


def another_attention(subject: Subject, attention: str, dtype: torch.dtype = torch.float32) -> Pair:
    if attention == "flex_attention":  # which Transformers compiles
        subject.require_compiler()
    return variant(subject, dtype), variant(subject, dtype, attention)


def autocast(subject: Subject) -> Pair:
    """The way of training with `--bf16`: weights in float32, products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return subject.expected, classify(subject.model, subject.inputs).float()


def one_by_one(subject: Subject) -> Pair:
    return subject.expected, classify(subject.model, subject.inputs, batch_size=1)


def masked(subject: Subject) -> Pair:
    """Clips of four lengths, each alone, and in batches that are padded and masked."""
    shortest = subject.extractor.frame_length
    clips = [clip[: max(shortest, len(clip) * (i % 4 + 1) // 4)] for i, clip in enumerate(subject.clips)]
    extract = partial(subject.extractor, padding="longest", return_tensors="pt")
    alone = [extract([clip]) for clip in clips]
    alone = [classify(subject.model, each["input_values"], each["attention_mask"]) for each in alone]
    batch = extract(clips)
    return torch.cat(alone), classify(subject.model, batch["input_values"], batch["attention_mask"])


def compiled(subject: Subject) -> Pair:
    subject.require_compiler()
    torch._dynamo.reset()
    model = copy.deepcopy(subject.model)
    model.compile(dynamic=False)
    return subject.expected, classify(model, subject.inputs)


def with_gradients(subject: Subject) -> Pair:
    """In which the MLP takes all tokens at once; all clips in one batch, so that there are several pieces."""
    if len(subject.inputs) * subject.model.config.num_tokens <= MLP_TOKENS:
        raise NotMeasured(f"needs more clips: there are pieces from {MLP_TOKENS} tokens on")
    expected = classify(subject.model, subject.inputs, batch_size=len(subject.inputs))
    return expected, subject.model(subject.inputs).logits.detach()


@torch.inference_mode()
def all_tokens(subject: Subject) -> Pair:
    """In which the last layer computes all tokens, not only those that are pooled."""
    body, head = subject.model.audio_spectrogram_transformer, subject.model.classifier
    return subject.expected, torch.cat([head(body(batch).pooler_output) for batch in subject.inputs.split(BATCH_SIZE)])


def without_mean(subject: Subject) -> Pair:
    """Training and its evaluation remove the mean of each waveform; the feature extractor alone does not."""
    centred = padded_features(subject.extractor, [clip - clip.mean() for clip in subject.clips])
    return subject.expected, classify(subject.model, centred)


def transformers_own(subject: Subject, same_epsilon: bool) -> Pair:
    """Transformers' AST has one epsilon for all of its norms, ours another one for the head's."""
    stock = StockModel.from_pretrained(subject.folder, dtype=torch.float32).eval()
    ours = copy.deepcopy(subject.model)
    if same_epsilon:
        ours.classifier.layernorm.eps = ours.config.layer_norm_eps
    return classify(ours, subject.inputs), classify(stock, subject.inputs)


def in_onnx(subject: Subject, precision: str) -> Pair:
    """From waveforms to scores, clip by clip."""
    ours = model_function(subject.model, subject.extractor, subject.extractor.padding)
    pair = [
        torch.cat([torch.from_numpy(function([clip.numpy()])) for clip in subject.clips])
        for function in (ours, subject.graphs[precision])
    ]
    return pair[0], pair[1]


@dataclass(frozen=True)
class Comparison:
    """Two ways, and the function that goes both: `compared` names the other way first, then what it is measured by."""

    group: str
    compared: str
    over: str
    function: Callable[[Subject], Pair]
    must_be_equal: bool = False


BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
COMPARISONS = [
    *(
        Comparison("features", compared, "log-mel values", function)
        for compared, function in [
            ("2 threads : 1", features_by_two_threads),
            ("a batch : each clip alone", features_in_a_batch),
            ("in blocks as they arrive : whole", features_in_blocks),
            ("float32 : float64", features_in_float32),
            ("ours : torchaudio's", features_by_torchaudio),
        ]
    ),
    Comparison("features", "resampled in pieces : at once", "samples", resampled_in_pieces),
    Comparison("features", "resampled by ours : by torchaudio", "samples", resampled_by_torchaudio),
    Comparison("logits", "a second time : the first", "logits", another_time, must_be_equal=True),
    *(
        Comparison("logits", compared, "logits", function)
        for compared, function in [
            ("2 threads : 1", two_threads),
            ("batches of 1 : of 8", one_by_one),
            ("own lengths in batches, padded and masked : alone", masked),
            ("MLP at once (gradients) : in pieces", with_gradients),
            ("last layer of all tokens : of the pooled", all_tokens),
            ("eager : sdpa", partial(another_attention, attention="eager")),
            ("flex_attention : sdpa", partial(another_attention, attention="flex_attention")),
            ("compiled : not", compiled),
            ("fp32 : fp64", partial(another_dtype, expected=FP64, found=FP32)),
            ("Transformers' AST : ours, same epsilon", partial(transformers_own, same_epsilon=True)),
            ("Transformers' AST : ours", partial(transformers_own, same_epsilon=False)),
            ("mean of the waveform removed : left", without_mean),
            ("fp16 : fp32", partial(another_dtype, expected=FP32, found=FP16)),
            ("bf16 : fp32", partial(another_dtype, expected=FP32, found=BF16)),
            ("bf16 autocast : fp32", autocast),
            ("bf16, eager : sdpa", partial(another_attention, attention="eager", dtype=BF16)),
        ]
    ),
    Comparison("logits", "ONNX fp32 : torch", "scores", partial(in_onnx, precision="fp32")),
    Comparison("logits", "ONNX int8 : torch", "scores", partial(in_onnx, precision="int8")),
]


# The table


@dataclass
class Difference:
    """A line of the table.

    Attributes:
        largest: Largest absolute difference; `None` where nothing was measured.
        relative: The same over the standard deviation of the expected values.
        equal_top1: Share of the clips with the same best label; `None` where there are no labels.
    """

    group: str
    compared: str
    over: str
    largest: float | None = None
    relative: float | None = None
    equal_top1: float | None = None
    must_be_equal: bool = False
    note: str = ""

    @property
    def is_as_promised(self) -> bool:
        """Not so where a difference, or no number, stands for what must be equal."""
        return not self.must_be_equal or self.largest == 0

    def cells(self) -> list[str]:
        numbers = (self.largest, self.relative)
        numbers = ["" if value is None else f"{value:.1e}" if value else "0" for value in numbers]
        top1 = "" if self.equal_top1 is None else f"{100 * self.equal_top1:.1f} %"
        remarks = [self.note] if self.note else []
        if self.must_be_equal:
            remarks.insert(0, "as it must be" if self.is_as_promised else "must be 0")
        return [self.group, self.compared, self.over, *numbers, top1, "; ".join(remarks)]


def difference(group: str, compared: str, over: str, expected: torch.Tensor, found: torch.Tensor) -> Difference:
    """Compare two tensors of one shape; best labels too, where rows are clips and columns labels.

    Raises:
        ValueError: Not one shape.
    """
    if expected.shape != found.shape:
        raise ValueError(
            f"{group}, {compared}: expected two tensors of one shape, got {tuple(expected.shape)} and "
            f"{tuple(found.shape)}."
        )
    row = Difference(group, compared, over)
    apart = (found.double() - expected.double()).abs().max()
    row.largest = apart.item()
    row.relative = (apart / expected.double().std()).item() if apart != 0 else 0.0
    if over in ("logits", "scores"):
        row.equal_top1 = equal_top1(expected, found)
    return row


def equal_top1(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Share of the rows with the same best label."""
    return (expected.argmax(dim=1) == found.argmax(dim=1)).double().mean().item()


def measure(comparison: Comparison, subject: Subject) -> Difference:
    """The line of one comparison."""
    names = (comparison.group, comparison.compared, comparison.over)
    try:
        row = difference(*names, *comparison.function(subject))
    except NotMeasured as reason:
        row = Difference(*names, note=f"not measured: {reason}")
    else:
        row.must_be_equal = comparison.must_be_equal
    return row


HEADER = ("group", "compared", "over", "largest difference", "of the spread", "equal top-1", "remarks")


def markdown_table(rows: list[Difference]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
