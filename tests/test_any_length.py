"""Any length: a pass equals a model loaded for that length, and a clip's outputs do not depend on its batch."""

import copy
import random
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import make_tiny_config, random_model
from torch.export import Dim
from transformers import AutoModel, AutoModelForAudioClassification

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, ASTModel
from modeling_ast.modeling_ast import adapt_position_embeddings, source_positions

close = torch.testing.assert_close
pytestmark = pytest.mark.usefixtures("one_thread")

# Of the tiny models here: 64 frames of 32 mel bins are what they are trained for. One patch, one frame more, both
# sides of the trained length, and much longer.
LENGTHS = (16, 17, 25, 26, 40, 63, 64, 65, 66, 100, 333)
IMPLEMENTATIONS = ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
# Grids with more and fewer rows than columns, gaps between patches, and one row or one column alone.
GEOMETRIES = [
    {},
    {"frequency_stride": 5, "time_stride": 3},
    {"frequency_stride": 16, "time_stride": 20},
    {"num_mel_bins": 70, "max_length": 50, "time_stride": 7},
    {"patch_size": 8, "max_length": 37, "num_mel_bins": 24},
    {"num_mel_bins": 16, "max_length": 16},
]


def spectrogram(frames: int, num_mel_bins: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, num_mel_bins, generator=torch.Generator().manual_seed(1000 * seed + frames))


def pad(clips: list[torch.Tensor], extra: int = 0, content: float = 0.0) -> dict[str, torch.Tensor]:
    """Clips in one batch, the longest with `extra` frames of padding."""
    length = max(map(len, clips)) + extra
    mask = torch.arange(length) < torch.tensor([[len(clip)] for clip in clips])
    padded = torch.stack([F.pad(clip, (0, 0, 0, length - len(clip)), value=content) for clip in clips])
    return {"input_values": padded, "attention_mask": mask.long()}


def with_attention(model, implementation: str):
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


@pytest.fixture(scope="module")
def model() -> ASTForAudioClassification:
    return random_model(make_tiny_config())


@pytest.fixture
def clips() -> list[torch.Tensor]:
    return [spectrogram(frames) for frames in (40, 16, 150, 64, 23)]


# The rule of positions


def positions_by_interpolate(table: torch.Tensor, source: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """The original's lines: a centre crop or PyTorch's bilinear interpolation, time first, then frequency."""
    grid = table[:, 2:].transpose(1, 2).reshape(1, -1, *source)  # (1, hidden_size, frequency, time)
    if target[1] <= source[1]:
        start = int(source[1] / 2) - int(target[1] / 2)
        grid = grid[:, :, :, start : start + target[1]]
    else:
        grid = F.interpolate(grid, size=(source[0], target[1]), mode="bilinear")
    if target[0] <= source[0]:
        start = int(source[0] / 2) - int(target[0] / 2)
        grid = grid[:, :, start : start + target[0], :]
    else:
        grid = F.interpolate(grid, size=target, mode="bilinear")
    return torch.cat((table[:, :2], grid.flatten(2).transpose(1, 2)), dim=1)


def test_positions_follow_the_originals_rule():
    """To 2e-6 for tables as large as trained ones: places are float32, here and in PyTorch, and 100 has 8e-6 to go."""
    sizes = random.Random(0)
    for case in range(200):
        source = (sizes.randint(1, 15), sizes.randint(1, 110))
        target = (sizes.randint(1, 25), sizes.randint(1, 250))
        table = 0.02 * torch.randn(1, 2 + source[0] * source[1], 3, generator=torch.Generator().manual_seed(case))
        found = adapt_position_embeddings(table, source, target)
        expected = positions_by_interpolate(table, source, target)
        close(found, expected, atol=2e-6, rtol=0, msg=lambda text, pair=(source, target): f"{pair}: {text}")


@pytest.mark.parametrize("source", [1, 2, 5, 12, 101])
def test_places_equal_interpolation_of_a_ramp(source):
    """A ramp's values say where they come from; 1e-6 of the axis, for every target up to several times its length."""
    ramp = torch.arange(source, dtype=torch.float32)
    for target in range(1, 4 * source + 5):
        lower, upper, fraction = source_positions(source, torch.tensor(target), target)
        if target <= source:
            start = source // 2 - target // 2
            expected = ramp[start : start + target]
            assert not fraction.any()
        else:
            expected = F.interpolate(ramp[None, None], size=target, mode="linear")[0, 0]
        assert 0 <= lower.min() and upper.max() < source and 0 <= fraction.min() and fraction.max() < 1
        close(torch.lerp(ramp[lower], ramp[upper], fraction), expected, atol=1e-6 * source, rtol=0)


def test_places_of_a_batch_are_those_of_each_clip():
    targets = torch.tensor([1, 4, 5, 6, 30])
    together = source_positions(5, targets, 30)
    for index, target in enumerate(targets.tolist()):
        for batched, alone in zip(together, source_positions(5, targets[index], target)):
            assert torch.equal(batched[index, :target], alone)


# A forward pass with T frames is the model loaded with max_length=T


@torch.no_grad()
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_any_length_equals_a_model_loaded_for_it(tmp_path, geometry):
    config = make_tiny_config(**geometry)
    model = random_model(config)
    model.save_pretrained(tmp_path)
    lengths = random.Random(repr(geometry))
    patch = config.patch_size
    for frames in (patch, config.max_length, lengths.randint(patch, 70), lengths.randint(71, 300)):
        clip = spectrogram(frames, config.num_mel_bins)[None]
        loaded = ASTForAudioClassification.from_pretrained(tmp_path, max_length=frames)
        assert loaded.config.max_length == frames
        close(model(clip).logits, loaded(clip).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [30, 200])
def test_adapted_models_take_any_length_too(model, tmp_path, frames):
    """Other mel bins and strides at loading, the length in the forward pass: as if all came at loading."""
    model.save_pretrained(tmp_path)
    other = {"num_mel_bins": 50, "frequency_stride": 7, "time_stride": 6}
    flexible = ASTForAudioClassification.from_pretrained(tmp_path, **other)
    clip = spectrogram(frames, 50)[None]
    # In the forward pass time comes last, and at loading first; strides change the source's number of columns.
    columns = flexible.config.num_time_patches
    assert columns == (64 - 16) // 6 + 1
    flexible.save_pretrained(tmp_path / "adapted")
    loaded = ASTForAudioClassification.from_pretrained(tmp_path / "adapted", max_length=frames)
    close(flexible(clip).logits, loaded(clip).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [29, 131])
def test_auto_classes_take_any_length(model, tmp_path, frames):
    model.save_pretrained(tmp_path)
    clip = spectrogram(frames)[None]
    for auto_class, own_class in ((AutoModelForAudioClassification, ASTForAudioClassification), (AutoModel, ASTModel)):
        found, loaded = auto_class.from_pretrained(tmp_path), auto_class.from_pretrained(tmp_path, max_length=frames)
        assert type(found) is own_class
        close(found(clip)[0], loaded(clip)[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_model_loaded_for_another_length_is_saved_and_takes_any_length(model, tmp_path):
    model.save_pretrained(tmp_path / "first")
    longer = ASTForAudioClassification.from_pretrained(tmp_path / "first", max_length=150)
    longer.save_pretrained(tmp_path / "second")
    again = ASTForAudioClassification.from_pretrained(tmp_path / "second")
    for frames in LENGTHS:
        clip = spectrogram(frames)[None]
        close(longer(clip).logits, again(clip).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_behind_the_last_whole_patch_change_nothing(model):
    clip = spectrogram(75)[None]
    close(model(clip[:, :66]).logits, model(clip).logits, atol=1e-5, rtol=0)
    assert (model(clip[:, :65]).logits - model(clip).logits).abs().max() > 1e-2


@torch.no_grad()
def test_positions_of_the_trained_length_are_the_table(model):
    embeddings = model.base_model.embeddings
    clip = spectrogram(64)[None]
    patches = embeddings.patch_embeddings(clip)
    close(embeddings(clip)[:, 2:] - patches, embeddings.position_embeddings[:, 2:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_all_ones_mask_equals_stock(tmp_path):
    ours = random_model(make_tiny_config(head_layer_norm_eps=None))
    ours.save_pretrained(tmp_path)
    stock = transformers.ASTForAudioClassification.from_pretrained(tmp_path).eval()
    clips = torch.stack([spectrogram(64, seed=seed) for seed in range(3)])
    masked = ours(clips, attention_mask=torch.ones(3, 64)).logits
    close(masked, stock(clips).logits, atol=2e-6, rtol=0)
    close(masked, ours(clips).logits, atol=2e-6, rtol=0)


# What a clip is batched and padded with


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_clips_logits_do_not_depend_on_its_batch(model, implementation):
    model = with_attention(model, implementation)
    draw = random.Random(1)
    for round_ in range(2 if implementation == "flex_attention" else 8):
        clips = [spectrogram(draw.choice(LENGTHS), seed=seed) for seed in range(draw.randint(1, 6))]
        batch = pad(clips, extra=draw.choice((0, 1, 9, 10, 200)), content=draw.choice((0.0, -7.0, 1e4)))
        found = model(**batch).logits
        alone = torch.cat([model(clip[None]).logits for clip in clips])
        close(found, alone, atol=1e-5, rtol=0)
        order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(round_))
        shuffled = model(**{name: tensor[order] for name, tensor in batch.items()}).logits
        close(shuffled, alone[order], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("content", [1e30, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_may_hold_anything(model, clips, implementation, content):
    """Memory that nobody wrote to is a usual padding, and 0 times NaN is NaN."""
    model = with_attention(model, implementation)
    alone = torch.cat([model(clip[None]).logits for clip in clips])
    for options in ({}, {"output_attentions": True}):
        close(model(**pad(clips, 20, content), **options).logits, alone, atol=1e-5, rtol=0)


def own_tokens(frames: int, batch_columns: int, rows: int = 2) -> list[int]:
    """Where a batch of so many columns has the tokens of a clip: the special ones, then each row's first columns."""
    columns = (frames - 16) // 10 + 1
    return [0, 1] + [2 + row * batch_columns + column for row in range(rows) for column in range(columns)]


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hidden_states_pooled_output_and_attention_do_not_depend_on_the_batch(model, clips, implementation):
    base = with_attention(model, implementation).base_model
    batch = pad(clips, extra=37, content=5.0)
    columns = (batch["input_values"].shape[1] - 16) // 10 + 1
    together = base(**batch, output_hidden_states=True, output_attentions=True)
    without_attention = base(**batch)
    for index, clip in enumerate(clips):
        alone = base(clip[None], output_hidden_states=True, output_attentions=True)
        own = own_tokens(len(clip), columns)
        close(together.pooler_output[index], alone.pooler_output[0], atol=1e-5, rtol=0)
        close(without_attention.pooler_output[index], alone.pooler_output[0], atol=1e-5, rtol=0)
        close(without_attention.last_hidden_state[index, own], alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)
        for found, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
            close(found[index, own], expected[0], atol=1e-5, rtol=1e-5)
        for found, expected in zip(together.attentions, alone.attentions, strict=True):
            close(found[index][:, own][:, :, own], expected[0], atol=1e-5, rtol=0)
            foreign = sorted(set(range(found.shape[-1])) - set(own))
            assert not found[index][:, own][:, :, foreign].any()


@torch.no_grad()
def test_folded_patches_of_a_clip_are_its_first_columns(model, clips):
    batch = pad(clips)
    grid = model.fold_patches(model.base_model(**batch).last_hidden_state)
    assert grid.shape == (5, 2, 14, 32)
    for folded, clip in zip(grid, clips):
        alone = model.fold_patches(model.base_model(clip[None]).last_hidden_state)[0]
        close(folded[:, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_half_precision_keeps_clips_apart(model, clips, implementation, dtype):
    """To its own rounding, as between any two of its kernels; padding that has an effect moves logits by ten times."""
    half = with_attention(model, implementation).to(dtype)
    alone = torch.cat([half(clip[None]).logits for clip in clips])
    tolerance = 8 * torch.finfo(dtype).eps * alone.abs().max().item()
    together = half(**pad(clips, extra=90, content=100.0)).logits
    assert together.dtype == dtype
    close(together, alone, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_mask_over_tokens_is_that_of_the_stock_model(tmp_path, implementation, side):
    """Told apart from one over frames by its length; 64 frames make 2 + 2 x 5 tokens."""
    model = random_model(make_tiny_config(head_layer_norm_eps=None))
    model.save_pretrained(tmp_path)
    stock = transformers.ASTForAudioClassification.from_pretrained(tmp_path).eval()
    for each in (stock, model):
        each.set_attn_implementation(implementation)
    clips, mask = torch.stack([spectrogram(64, seed=seed) for seed in range(3)]), torch.ones(3, 12, dtype=torch.long)
    for index, number in enumerate((0, 3, 9)):
        mask[index, slice(number) if side == "left" else slice(12 - number, 12)] = 0
    found = model(clips, attention_mask=mask).logits
    close(found, stock(clips, attention_mask=mask).logits, atol=1e-5, rtol=0)
    assert (found[1:] - model(clips).logits[1:]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32])
def test_mask_of_every_type_works(model, clips, dtype):
    batch = pad(clips)
    expected = model(**batch).logits
    found = model(batch["input_values"], attention_mask=batch["attention_mask"].to(dtype)).logits
    close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_a_mask_padding_counts_as_in_the_original(model, clips):
    batch = pad(clips)
    unmasked = model(batch["input_values"]).logits
    assert (unmasked - model(**batch).logits)[1].abs().max() > 1e-2
    close(unmasked[1], model(batch["input_values"][1:2]).logits[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_clip_of_less_than_one_patch_keeps_one_column(model):
    batch = pad([spectrogram(64), spectrogram(5), spectrogram(0)])
    found = model(**batch).logits
    for index in range(3):
        close(found[index], model(batch["input_values"][index : index + 1, : (64, 16, 16)[index]]).logits[0])


# From waveforms


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_waveforms_of_any_length_give_the_same_logits_alone_and_in_a_batch(model):
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=64, padding="longest")
    draw = random.Random(2)
    # 25 ms, the shortest clip there is; less than one patch (175 ms); one patch; up to 1.5 s.
    lengths = [400, 401, 2799, 2800, 2960] + [draw.randint(400, 24000) for _ in range(5)]
    waveforms = [noise(samples, seed) for seed, samples in enumerate(lengths)]
    alone = torch.cat([model(**extractor(waveform, return_tensors="pt")).logits for waveform in waveforms])
    assert alone.std(dim=0).max() > 1e-2
    for _ in range(4):
        chosen = draw.sample(range(len(waveforms)), draw.randint(2, 10))
        batch = extractor([waveforms[index] for index in chosen], return_tensors="pt")
        close(model(**batch).logits, alone[chosen], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_mask_makes_max_length_padding_equal_longest(model):
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=150)
    waveforms = [noise(3000), noise(16000)]
    longest = model(**extractor(waveforms, return_tensors="pt", padding="longest")).logits
    masked = model(**extractor(waveforms, return_tensors="pt", return_attention_mask=True)).logits
    close(masked, longest, atol=1e-5, rtol=0)


# Training


def gradients(model, batches: list[dict]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean loss over the clips, and its gradients; layers may be checkpointed."""
    model = copy.deepcopy(model).train()
    num_clips = sum(len(batch["labels"]) for batch in batches)
    loss = sum(model(**batch).loss * len(batch["labels"]) for batch in batches) / num_clips
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_training_on_a_batch_equals_training_on_each_clip(model, clips, implementation, checkpointing):
    model = with_attention(model, implementation)
    labels = torch.tensor([0, 1, 2, 3, 4])
    separate = [{"input_values": clip[None], "labels": label[None]} for clip, label in zip(clips, labels)]
    expected_loss, expected = gradients(model, separate)
    if checkpointing:
        model.activation_checkpointing_enable()
    for extra, content in ((0, 0.0), (50, 1e3), (3, -20.0)):
        loss, found = gradients(model, [{**pad(clips, extra, content), "labels": labels}])
        close(loss, expected_loss, atol=1e-5, rtol=0)
        close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected["audio_spectrogram_transformer.embeddings.position_embeddings"].any()


def test_a_short_clip_trains_the_positions_that_it_uses(model):
    """Of five columns a clip of three takes the middle, by 5 // 2 - 3 // 2 from the second on, and a long one all."""
    for frames, columns in ((36, [1, 2, 3]), (64, [0, 1, 2, 3, 4]), (200, [0, 1, 2, 3, 4])):
        _, found = gradients(model, [{"input_values": spectrogram(frames)[None], "labels": torch.tensor([1])}])
        table = found["audio_spectrogram_transformer.embeddings.position_embeddings"][0]
        trained = table[2:].unflatten(0, (2, 5)).abs().sum(dim=-1) > 0
        assert trained.any(dim=0).nonzero().flatten().tolist() == columns
        assert trained[:, columns].all() and table[:2].abs().sum(dim=-1).all()


def test_padding_gets_no_gradient(model, clips):
    batch = pad(clips, extra=30)
    batch["input_values"].requires_grad_()
    model(**batch).logits.square().sum().backward()
    found = batch["input_values"].grad
    assert not found[batch["attention_mask"] == 0].any()
    for gradient, clip in zip(found, clips):
        used = (len(clip) - 16) // 10 * 10 + 16  # the frames of whole patches
        assert gradient[:used].abs().sum(dim=1).all()


# Graphs


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_values, attention_mask=None):
        return self.model(input_values, attention_mask=attention_mask).logits


def random_batch(num_clips: int, frames: int, has_mask: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(frames)
    clips = torch.randn(num_clips, frames, 32, generator=generator)
    own = torch.randint(16, frames + 1, (num_clips, 1), generator=generator)
    return clips, (torch.arange(frames) < own).long() if has_mask else None


@torch.no_grad()
@pytest.mark.parametrize("has_mask", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize(
    ("implementation", "made_at", "stride"),
    [("sdpa", 48, 10)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("sdpa", 64, 10), ("sdpa", 200, 10), ("eager", 200, 10), ("sdpa", 200, 16), ("eager", 200, 16))
    ],
)
def test_exported_graph_holds_at_every_length(model, implementation, made_at, stride, has_mask):
    """Made at one length and batch, run at others, on both sides of the trained length.

    From two columns of patches up: PyTorch takes an axis of one for another case than all others.
    """
    if stride != model.config.time_stride:
        model = random_model(make_tiny_config(frequency_stride=stride, time_stride=stride))
    graph = Logits(with_attention(model, implementation))
    shortest = 16 + stride
    sizes = {0: Dim("batch"), 1: Dim("frames", min=shortest, max=4000)}
    example = (torch.zeros(2, made_at, 32), torch.ones(2, made_at, dtype=torch.long) if has_mask else None)
    exported = torch.export.export(graph, example, dynamic_shapes=(sizes, sizes if has_mask else None)).module()
    for num_clips, frames in ((2, made_at), (1, shortest), (3, 63), (2, 64), (2, 66), (5, 333), (1, 1024)):
        inputs = random_batch(num_clips, frames, has_mask)
        close(exported(*inputs), graph(*inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "with_gradients",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["gradients", "no gradients"],
)
@pytest.mark.parametrize("has_mask", [False, True], ids=["no mask", "mask"])
def test_traced_graph_gives_equal_logits(model, with_gradients, has_mask):
    graph = Logits(model)
    example = (torch.zeros(2, 64, 32), torch.ones(2, 64, dtype=torch.long))[: 1 + has_mask]
    with torch.set_grad_enabled(with_gradients):
        traced = torch.jit.trace(graph, example)
        for num_clips, frames in ((2, 64), (3, 64), (1, 150)):
            inputs = random_batch(num_clips, frames, has_mask)[: 1 + has_mask]
            close(traced(*inputs), graph(*inputs), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "implementation", "has_mask"),
    [
        ("eager", "sdpa", False),
        ("eager", "sdpa", True),
        ("eager", "eager", True),
        pytest.param(
            *("inductor", "sdpa", True),
            marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
        ),
    ],
)
def test_compiled_graph_holds_at_every_length(model, backend, implementation, has_mask):
    torch.compiler.reset()
    graph = Logits(with_attention(model, implementation))
    compiled = torch.compile(graph, fullgraph=True, dynamic=True, backend=backend)
    for num_clips, frames in ((3, 40), (2, 64), (4, 200), (2, 16), (1, 100)):
        inputs = random_batch(num_clips, frames, has_mask)
        close(compiled(*inputs), graph(*inputs), atol=1e-5, rtol=0)


# What is refused


@pytest.mark.parametrize("shape", [(3, 63), (2, 64), (3, 64, 1), (64,)], ids=str)
def test_mask_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError) as error:
        model(torch.zeros(3, 64, 32), attention_mask=torch.ones(shape))
    expected = f"attention_mask of shape (batch, frames), here (3, 64), or (batch, tokens), here (3, 12), got {shape}"
    assert expected in str(error.value)


@pytest.mark.parametrize("padded", [slice(0, 10), slice(0, 63), slice(20, 21)], ids=["front", "all but one", "gap"])
def test_padding_before_the_end_of_a_clip_is_refused(model, padded):
    mask = torch.ones(3, 64, dtype=torch.long)
    mask[1, padded] = 0
    with pytest.raises(ValueError, match="attention_mask to be 1 from the start of each clip to its end and 0 behind"):
        model(torch.zeros(3, 64, 32), attention_mask=mask)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 15, 32), "16 or more frames, 32 mel bins), got (2, 15, 32): less than one patch of 16 frames"),
        ((2, 64, 48), "got (2, 64, 48). For 48 mel bins load the model with num_mel_bins=48"),
        ((2, 32, 64), "got (2, 32, 64). The last two axes are swapped."),
        ((64, 32), "got (64, 32)."),
    ],
    ids=["short", "bins", "swapped", "no batch"],
)
@pytest.mark.parametrize("has_mask", [False, True], ids=["no mask", "mask"])
def test_input_that_does_not_fit_is_refused_with_and_without_a_mask(model, shape, words, has_mask):
    with pytest.raises(ValueError) as error:
        model(torch.zeros(shape), attention_mask=torch.ones(shape[:2]) if has_mask else None)
    assert words in str(error.value)
