"""Sections of the benchmark that hear: this package's AST beside Transformers' own, on the same weights and sounds.

Each section takes the benchmark's options and a folder with a model that both sides load, and yields rows as they are
measured.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from measuring import (
    BenchmarkError,
    LayerProducts,
    Row,
    check_agreement,
    count_operations,
    threads,
    time_in_turn,
)
from torchaudio.compliance import kaldi
from transformers import pipeline
from transformers.models.audio_spectrogram_transformer import ASTConfig as StockConfig
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor as StockExtractor
from transformers.models.audio_spectrogram_transformer import ASTForAudioClassification as StockModel

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, load_waveform
from modeling_ast.audio import read_samples
from modeling_ast.data.class_folders import read_lists
from modeling_ast.data.folders import find_sounds
from modeling_ast.data.synthetic import CLASSES, generate_clip
from modeling_ast.fbank import fbank
from modeling_ast.inference.agreement import agreement_measure, compare, graph_function, model_function
from modeling_ast.inference.export import export_onnx, require_onnx
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline
from modeling_ast.inference.quantization import quantize_onnx

RATE = 16000
NUM_LABELS = 527  # AudioSet's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# How far outputs may be from stock's, of the largest value. bfloat16 has 8 bits, which add up over the layers.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def write_model(args: argparse.Namespace, folder: Path) -> None:
    """A model of the size asked for, and its feature extractor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # One epsilon, since stock has no second one.
        sizes = {"head_layer_norm_eps": None, "num_labels": NUM_LABELS, "max_length": args.max_length}
        model = ASTForAudioClassification(ASTConfig.from_size(args.size, **sizes))
        with torch.no_grad():
            for parameter in model.parameters():  # fresh biases and norms are zeros and ones, and hide what is swapped
                parameter += 0.02 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=args.max_length).save_pretrained(folder)


def count_stock(folder: Path, frames: int, bins: int = 128, backward: bool = False) -> int:
    """Operations of stock's AST on one spectrogram."""
    config = StockConfig.from_pretrained(folder, max_length=frames, num_mel_bins=bins)
    return count_operations(StockModel, config, backward)


def make_clip(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that fades by 60 dB, so that there are loud bins and quiet ones: float32 (samples,)."""
    length = int(seconds * RATE)
    noise = np.random.default_rng(seed).standard_normal(length) * np.geomspace(0.3, 3e-4, length)
    return noise.astype(np.float32)


def make_spectrograms(args: argparse.Namespace, batch_size: int) -> torch.Tensor:
    return 0.5 * torch.randn(batch_size, args.max_length, 128, generator=torch.Generator().manual_seed(1))


def logits_of(model: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    @torch.inference_mode()
    def call() -> torch.Tensor:
        return model(inputs).logits.float()

    return call


def agreement(names: list[str], tolerance: float, reference: str = "stock") -> Callable[[dict], None]:
    """The check that these outputs are those of the reference."""
    return lambda outputs: check_agreement({n: outputs[n] for n in [*names, reference]}, reference, tolerance)


def skipped(section: str, work: str, reason: str) -> Row:
    return Row(section, work, note=f"not measured: {reason}")


def features(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    ours, stock = ASTFeatureExtractor.from_pretrained(folder), StockExtractor.from_pretrained(folder)
    with threads(1):
        for batch_size in (1, 8):
            clips = [make_clip(10, seed) for seed in range(batch_size)]
            frames = torch.randn(batch_size, 998, 512)

            def extract(extractor, clips=clips) -> torch.Tensor:
                return extractor(clips, sampling_rate=RATE, return_tensors="pt")["input_values"]

            sides = {"ours": partial(extract, ours), "stock": partial(extract, stock)}
            sides["transform"] = lambda frames=frames: torch.fft.rfft(frames)
            seconds = time_in_turn(sides, args.rounds, agreement(["ours"], 1e-5))
            work = "one 10 s clip, one thread" if batch_size == 1 else f"{batch_size} clips of 10 s, one thread"
            share = seconds["transform"] / seconds["ours"]
            yield Row("features", work, seconds["ours"], seconds["stock"], goal=2.5, share=share, limit="transform")
        waveform = torch.from_numpy(clips[0])
        sides = {"ours": lambda: fbank(waveform), "transform": lambda: torch.fft.rfft(frames[0])}
        sides["stock"] = lambda: kaldi.fbank(
            waveform[None], sample_frequency=RATE, window_type="hanning", num_mel_bins=128, use_energy=False
        )
        seconds = time_in_turn(sides, args.rounds, agreement(["ours"], 1e-5))
        share, note = seconds["transform"] / seconds["ours"], "the other side is torchaudio"
        work = "filter bank alone, 10 s, one thread"
        yield Row("features", work, seconds["ours"], seconds["stock"], share=share, limit="transform", note=note)


def inference(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    operations = count_stock(folder, args.max_length)
    for name in args.dtypes:
        dtype, goals = DTYPES[name], {"fp32": (1.15, 0.85), "bf16": (1.3, 0.65)}[name]
        models = {"ours": ASTForAudioClassification, "stock": StockModel}
        models = {side: kind.from_pretrained(folder, dtype=dtype).eval() for side, kind in models.items()}
        if has_compiler():
            models["compiled"] = ASTForAudioClassification.from_pretrained(folder, dtype=dtype).eval()
            models["compiled"].compile(dynamic=False)
        for batch_size in args.batch_sizes:
            torch._dynamo.reset()  # a shape of its own, and no code that suits several
            inputs = make_spectrograms(args, batch_size).to(dtype)
            sides = {side: logits_of(model, inputs) for side, model in models.items()}
            bare = LayerProducts(models["ours"].config, batch_size * models["ours"].config.num_tokens, dtype)
            check = agreement([side for side in models if side != "stock"], TOLERANCES[dtype])
            with torch._inductor.config.patch(freezing=True):  # what TORCHINDUCTOR_FREEZING=1 sets
                seconds = time_in_turn({**sides, "products": bare}, args.rounds, check)
            least = batch_size * operations / bare.operations * seconds["products"]
            work = f"{args.size}, {args.max_length} frames, {name}, batch {batch_size}"
            common = {"stock": seconds["stock"], "goal": goals[0], "share_goal": goals[1], "limit": "products"}
            for side, addition in (("ours", ""), ("compiled", ", compiled")):
                if side in seconds:
                    share = least / seconds[side]
                    yield Row("inference", work + addition, seconds[side], share=share, **common)
                else:
                    yield skipped("inference", work + addition, "no C++ compiler")


def has_compiler() -> bool:
    """Whether torch.compile can work on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def int8(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    try:
        require_onnx()
    except ImportError as error:
        yield skipped("int8", f"{args.size}, ONNX", str(error))
        return
    model, stock = ASTForAudioClassification.from_pretrained(folder), StockModel.from_pretrained(folder).eval()
    extractor, stock_extractor = ASTFeatureExtractor.from_pretrained(folder), StockExtractor.from_pretrained(folder)
    clip = make_clip(0.01 * args.max_length)
    sides, names = {}, {"fp32": "ONNX fp32", "int8": "ONNX int8"}
    sides["stock"] = lambda: center_log(forward(stock, stock_extractor, clip).softmax(dim=-1))
    for name, graph in export_graphs(model, extractor, folder, args.num_threads).items():
        sides[name] = lambda graph=graph: center_log(torch.from_numpy(graph([clip])))

    def check(outputs: dict) -> None:
        agreement(["fp32"], 1e-3)(outputs)
        agreement(["int8"], 0.25)(outputs)  # rounding to 8 bits, of random weights: the order of size is what is held

    seconds = time_in_turn(sides, args.rounds, check)
    for name, goal in (("fp32", None), ("int8", 3.0)):
        work = f"{args.size}, from a clip of {args.max_length} frames to scores, {names[name]}"
        yield Row("int8", work, seconds[name], seconds["stock"], goal=goal)
    if args.model is None or args.audio is None:
        yield skipped("int8", "equal answers on real clips, int8 : torch", "needs --model and --audio")
        return
    model, extractor = load_trained(args.model)
    if (measure := agreement_measure(model.config)) is None:
        yield skipped("int8", "equal answers on real clips, int8 : torch", "a regression has none")
        return
    name, agree = measure
    clips = [load_waveform(path, extractor.sampling_rate).numpy() for path in spread(args.audio, args.num_clips)]
    functions = {"model": model_function(model, extractor, extractor.padding)}
    functions |= export_graphs(model, extractor, folder, args.num_threads)
    equal = compare(functions, ([clip] for clip in clips), agree)["int8"]["agreement"]
    yield Row("int8", f"{name} on real clips, int8 : torch", equal, unit="%", goal=0.98, note=f"{len(clips)} clips")


def export_graphs(
    model: ASTForAudioClassification, extractor: ASTFeatureExtractor, folder: Path, num_threads: int
) -> dict[str, Callable]:
    export_onnx(model, extractor, folder / "model.onnx")
    quantize_onnx(folder / "model.onnx", folder / "model.int8.onnx")
    files = {"fp32": folder / "model.onnx", "int8": folder / "model.int8.onnx"}
    return {name: graph_function(path, num_threads) for name, path in files.items()}


def center_log(scores: torch.Tensor) -> torch.Tensor:
    """A softmax back to logits around 0, in which small scores count as well as large ones."""
    return scores.log() - scores.log().mean(dim=-1, keepdim=True)


def short_clips(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    clip, frames = make_clip(1), 98
    extractor, stock_extractor = ASTFeatureExtractor.from_pretrained(folder), StockExtractor.from_pretrained(folder)
    ours, stock = (kind.from_pretrained(folder).eval() for kind in (ASTForAudioClassification, StockModel))
    loaded = ASTForAudioClassification.from_pretrained(folder, max_length=frames).eval()
    bare = LayerProducts(loaded.config, loaded.config.num_tokens, torch.float32)
    sides = {"ours": partial(forward, ours, extractor, clip, padding="longest"), "products": bare}
    sides["stock"] = partial(forward, stock, stock_extractor, clip)
    # Stock cannot run this length.
    check_agreement(
        {"ours": sides["ours"](), "ours, loaded at that length": forward(loaded, extractor, clip, padding="longest")},
        "ours",
        1e-4,
    )
    seconds = time_in_turn(sides, args.rounds)
    share = count_stock(folder, frames) / bare.operations * seconds["products"] / seconds["ours"]
    work = f"{args.size}, from a clip of 1 s to logits, fp32"
    note = f"stock pads to {args.max_length} frames"
    yield Row("short_clips", work, seconds["ours"], seconds["stock"], "s", 8.0, share, None, "products", note)
    work = "accuracy on real clips, each at its own length : padded"
    if args.model is None or args.audio is None:
        yield skipped("short_clips", work, "needs --model and --audio")
        return
    ours, extractor = load_trained(args.model)
    clips = labelled_clips(args.audio, ours.config.label2id, args.num_clips)
    if not clips:
        yield skipped("short_clips", work, "no recording lies in a folder named after a label of the model")
        return
    stock, stock_extractor = StockModel.from_pretrained(args.model).eval(), StockExtractor.from_pretrained(args.model)
    right = {"ours": 0, "stock": 0}
    for path, label in clips:
        clip = load_waveform(path, extractor.sampling_rate).numpy()
        right["ours"] += int(forward(ours, extractor, clip, padding="longest").argmax()) == label
        right["stock"] += int(forward(stock, stock_extractor, clip).argmax()) == label
    shares = {side: count / len(clips) for side, count in right.items()}
    note = f"{len(clips)} clips; stock pads to {ours.config.max_length} frames"
    yield Row("short_clips", work, shares["ours"], shares["stock"], unit="%", note=note)


@torch.inference_mode()
def forward(model: torch.nn.Module, extractor: ASTFeatureExtractor, clip: np.ndarray, **options) -> torch.Tensor:
    """Logits (1, num_labels) of one clip."""
    inputs = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt", **options)
    return model(input_values=inputs["input_values"]).logits


def load_trained(folder: Path) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    return ASTForAudioClassification.from_pretrained(folder).eval(), ASTFeatureExtractor.from_pretrained(folder)


def spread(folder: Path, count: int) -> list[str]:
    """So many recordings below a folder, evenly over their sorted paths.

    Raises:
        BenchmarkError: There are none.
    """
    paths = sorted(find_sounds(folder))
    if not paths:
        raise BenchmarkError(f"Expected recordings below {folder}, found none.")
    return [paths[index * len(paths) // min(count, len(paths))] for index in range(min(count, len(paths)))]


def labelled_clips(folder: Path, label2id: dict[str, int], count: int) -> list[tuple[str, int]]:
    """Recordings in folders named after labels, with the labels' numbers; the test clips where a list names them."""
    paths = sorted(find_sounds(folder))
    for parent in {Path(path).parents[1] for path in paths}:
        held_out = read_lists(parent)
        if "test" in held_out.values():
            kept = {str(parent / name) for name, split in held_out.items() if split == "test"}
            paths = [path for path in paths if Path(path).parents[1] != parent or path in kept]
    clips = [(path, label2id[Path(path).parent.name]) for path in paths if Path(path).parent.name in label2id]
    return clips[:: max(1, len(clips) // count)][:count]


def folder_of_files(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    paths = spread(args.audio, args.num_files) if args.audio else generate_files(folder / "mixed", args.num_files)
    options = {"task": "audio-classification", "device": "cpu"}
    tagger = pipeline(model=str(folder), pipeline_class=ASTAudioClassificationPipeline, **options)
    classifier = pipeline(
        model=StockModel.from_pretrained(folder), feature_extractor=StockExtractor.from_pretrained(folder), **options
    )

    def tag_by_ours(files: list[str], **keywords) -> torch.Tensor:
        return to_scores(tagger(files, top_k=None, threshold=0, **keywords))

    def tag_by_stock(files: list[str]) -> torch.Tensor:
        clips = [{"raw": load_waveform(path, RATE).numpy(), "sampling_rate": RATE} for path in files]
        return to_scores(classifier(clips, top_k=None, batch_size=args.tagging_batch_size))

    seconds = [soundfile.info(path).duration for path in paths]
    fitting = [path for path, length in zip(paths, seconds) if length <= 0.01 * args.max_length][:2]
    if fitting:  # longer ones stock hears the beginning of
        padded = {"ours": tag_by_ours(fitting, padding="max_length"), "stock": tag_by_stock(fitting)}
        check_agreement(padded, "stock", 1e-3)
    sides = {"ours": lambda: tag_by_ours(paths, padding="longest", batch_size=args.tagging_batch_size)}
    sides |= {"stock": lambda: tag_by_stock(paths), "decoder": lambda: [read_samples(path) for path in paths]}
    alone = torch.cat([tag_by_ours([path], padding="longest") for path in paths])
    check_agreement({"ours, in batches": sides["ours"](), "ours, alone": alone}, "ours, alone", 1e-3)
    timed = time_in_turn(sides, args.rounds)
    work = f"{args.size}, {len(paths)} files to scores, batch {args.tagging_batch_size}"
    share, kind = timed["decoder"] / timed["ours"], "real" if args.audio else "generated"
    note = f"{kind} recordings of {min(seconds):.1f} to {max(seconds):.1f} s, mean {np.mean(seconds):.1f} s; "
    note += f"stock gets decoded arrays and pads to {args.max_length} frames"
    yield Row("folder", work, timed["ours"], timed["stock"], "s", 4.0, share, None, "decoder", note)


def to_scores(results: list[list[dict]]) -> torch.Tensor:
    """What a pipeline gives, (clips, num_labels), in the order of the labels' names."""
    by_name = [sorted(tags, key=lambda tag: tag["label"]) for tags in results]
    return torch.tensor([[tag["score"] for tag in tags] for tags in by_name])


def generate_files(folder: Path, count: int) -> list[str]:
    """Sounds of mixed lengths, as FLAC at 16 kHz and OGG at 44.1 kHz in turn."""
    folder.mkdir()
    return [
        write_sound(folder / f"{number}{('.flac', '.ogg')[number % 2]}", sound, (0.5, 1, 2, 5)[number // 2 % 4])
        for number, sound in enumerate(generate_sounds(count))
    ]


def generate_sounds(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [generate_clip(CLASSES[number % len(CLASSES)], generator) for number in range(count)]


def write_sound(path: Path, sound: torch.Tensor, seconds: float) -> str:
    """The samples of a sound, again and again, as a file of so many seconds: OGG at 44.1 kHz, all else at 16 kHz."""
    rate = 44100 if path.suffix == ".ogg" else RATE
    length = int(seconds * rate)
    soundfile.write(path, sound.repeat(-(-length // len(sound)))[:length].numpy(), rate)
    return str(path)
