"""What makes the filter bank fast changes nothing: blocks, bands, steps in place, and graphs of it."""

import numpy as np
import pytest
import soundfile
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import modeling_ast.fbank
from modeling_ast import ASTFeatureExtractor, load_waveform
from modeling_ast.fbank import ENERGY_FLOOR, fbank, frame_length, frame_shift, mel_filters

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise that fades by 60 dB, so that there are loud frames and quiet ones."""
    wave = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return wave * torch.logspace(-0.5, -3.5, shape[-1])


def plain_fbank(waveform: torch.Tensor, sampling_rate: int, num_mel_bins: int) -> torch.Tensor:
    """The same operations one by one: all frames at once, magnitudes, and one product with all of the filters."""
    length, num_fft = frame_length(sampling_rate), 2 * (len(mel_filters(sampling_rate, num_mel_bins)) - 1)
    frames = waveform.unfold(-1, length, frame_shift(sampling_rate))
    frames = frames - frames.mean(dim=-1, keepdim=True)
    frames = frames - 0.97 * torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    frames = frames * torch.hann_window(length, periodic=False, dtype=waveform.dtype)
    power = torch.fft.rfft(frames, n=num_fft).abs().square()
    energies = power @ torch.from_numpy(mel_filters(sampling_rate, num_mel_bins)).to(waveform.dtype)
    return energies.clamp(min=ENERGY_FLOOR).log()


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few frames, so that a short clip has many."""
    monkeypatch.setattr(modeling_ast.fbank, "BLOCK_SAMPLES", 2048)


@pytest.mark.parametrize("num_mel_bins", [1, 5, 32, 33, 80, 128, 200])
@pytest.mark.parametrize("sampling_rate", [100, 400, 8000, 11025, 16000, 22050, 48000])
def test_bands_equal_one_product_with_all_filters(sampling_rate, num_mel_bins):
    """Also with filters that are all empty, as most of 200 are where the transform has 8 lines."""
    waveforms = noise(2, sampling_rate // 5)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        expected = plain_fbank(waveforms.to(dtype), sampling_rate, num_mel_bins)
        found = fbank(waveforms.to(dtype), sampling_rate, num_mel_bins)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(400,), (16000,), (1, 16000), (3, 16000), (200, 800)])
def test_features_do_not_depend_on_the_blocks(shape, monkeypatch):
    waveforms = noise(*shape)
    expected = plain_fbank(waveforms, 16000, 128)
    for samples in (1, 512, 5000, 2**17, 2**30):
        monkeypatch.setattr(modeling_ast.fbank, "BLOCK_SAMPLES", samples)
        torch.testing.assert_close(fbank(waveforms), expected, atol=1e-5, rtol=0)


def test_fbank_leaves_the_waveform_as_it_is(small_blocks):
    waveform = noise(2, 1600)
    before = waveform.clone()
    fbank(waveform)
    assert torch.equal(waveform, before)


def test_a_sample_that_is_no_number_spoils_the_frames_that_hold_it_and_no_other(small_blocks):
    waveform = noise(16000)
    expected = fbank(waveform)
    waveform[8000] = torch.inf
    found = fbank(waveform)
    spoilt = torch.tensor([160 * frame <= 8000 < 160 * frame + 400 for frame in range(98)])
    assert found[spoilt].isnan().any(dim=1).all()
    assert torch.equal(found[~spoilt], expected[~spoilt])


def test_gradient_is_that_of_the_formula(small_blocks):
    waveform = noise(2, 4000).double()
    gradients = []
    for function in (fbank, plain_fbank):
        leaf = waveform.clone().requires_grad_()
        features = function(leaf, 16000, 40)
        (features * torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_forward_derivative_is_that_of_the_formula(small_blocks):
    waveform, direction = noise(4000).double(), noise(4000, seed=1).double()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(waveform, direction)
        slopes = [forward_ad.unpack_dual(function(dual, 16000, 40)).tangent for function in (fbank, plain_fbank)]
    assert slopes[0].abs().sum() > 0
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradient_through_vmap_is_that_of_autograd(small_blocks):
    waveforms = noise(2, 1000).double().requires_grad_()
    (expected,) = torch.autograd.grad(fbank(waveforms, 16000, 40).sum(), waveforms)
    found = torch.func.grad(lambda waves: torch.func.vmap(lambda wave: fbank(wave, 16000, 40))(waves).sum())
    torch.testing.assert_close(found(waveforms.detach()), expected, rtol=1e-8, atol=1e-8)


def forward_derivative(function):
    return lambda waveform: torch.func.jvp(function, (waveform,), (waveform.flip(-1),))[1]


TRANSFORMS = [torch.func.vmap, torch.func.jacrev, forward_derivative]


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("transform, sampling_rate", zip(TRANSFORMS, (15000, 15100, 15200), strict=True))
def test_a_transform_may_be_the_first_to_use_the_filter_bank(transform, sampling_rate):
    """Filters and window, which are kept, belong to no transform. Of a rate that no other test has used before."""
    waveforms = noise(2, 600).double()
    found = transform(lambda waves: fbank(waves, sampling_rate, 7))(waveforms)
    expected = transform(lambda waves: plain_fbank(waves, sampling_rate, 7))(waveforms)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fbank(waveforms, sampling_rate, 7), plain_fbank(waveforms, sampling_rate, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_products_on_a_gpu_are_of_float64_which_no_setting_rounds(dtype):
    """On a device that is not there: shapes and types alone."""
    products = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                products.extend(each.dtype for each in args)
            return operation(*args, **(kwargs or {}))

    with FakeTensorMode(), Record():
        features = fbank(torch.empty(2, 16000, device="cuda", dtype=dtype))
    assert products and set(products) == {torch.float64}
    assert features.device.type == "cuda" and features.shape == (2, 98, 128)
    assert features.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_changes_no_feature(monkeypatch):
    waveform = noise(16000).cuda()
    expected = fbank(waveform)
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    torch.testing.assert_close(fbank(waveform), expected, atol=1e-6, rtol=0)


def test_features_without_a_gradient_can_be_trained_on(small_blocks):
    features = fbank(noise(4000))
    layer = torch.nn.Linear(128, 1)
    layer(features).sum().backward()
    torch.testing.assert_close(layer.weight.grad, features.sum(dim=0, keepdim=True))


def test_second_derivative_exists(small_blocks):
    waveform = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda wave: fbank(wave, 400, 5), waveform)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_fbank_gives_the_same(backend, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(fbank, backend=backend, dynamic=dynamic)
    for shape in ((16000,), (3, 8000)):
        torch.testing.assert_close(compiled(noise(*shape)), fbank(noise(*shape)), atol=1e-5, rtol=0)
    torch.compiler.reset()


def test_exported_fbank_takes_any_batch_and_any_length(small_blocks):
    class Features(torch.nn.Module):
        def forward(self, waveforms):
            return fbank(waveforms)

    shapes = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("samples", min=560),
    }  # two frames: one would be a case of its own
    exported = torch.export.export(Features(), (noise(2, 32000),), dynamic_shapes=(shapes,)).module()
    for shape in ((2, 32000), (1, 560), (5, 1000), (3, 100000)):
        torch.testing.assert_close(exported(noise(*shape)), fbank(noise(*shape)), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_traced_fbank_takes_any_length(small_blocks):
    traced = torch.jit.trace(fbank, noise(2, 8000), check_trace=False)
    torch.testing.assert_close(traced(noise(2, 30000)), fbank(noise(2, 30000)), atol=1e-5, rtol=0)


# Real recordings


@pytest.mark.parametrize("sampling_rate", [16000, None], ids=["16 kHz", "own rate"])
def test_features_of_real_clips_equal_torchaudio(shared_data, sampling_rate):
    """Decoded OGG has bins that are almost empty, where every difference in rounding shows."""
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    paths = (
        sorted((shared_data / "esc10" / "audio").iterdir())[::40] + sorted((shared_data / "fsdd").rglob("*.*"))[::400]
    )
    for path in paths:
        if path.suffix not in (".ogg", ".wav", ".flac"):
            continue
        rate = sampling_rate or soundfile.info(path).samplerate
        waveform = torch.as_tensor(np.asarray(load_waveform(path, sampling_rate=rate)))
        expected = kaldi.fbank(waveform[None], sample_frequency=rate, window_type="hanning", num_mel_bins=128)
        torch.testing.assert_close(fbank(waveform, rate), expected, atol=1e-5, rtol=0, msg=path.name)


# The extractor


@pytest.mark.parametrize(
    "options, kept",
    [
        ({}, 50),
        ({"max_length": 20}, 20),
        ({"max_length": 1}, 1),
        ({"padding": "longest", "max_length": 30}, 30),
        ({"padding": "longest"}, None),
    ],
)
def test_frames_that_are_cut_are_not_computed(computed, options, kept):
    extractor, waveform = ASTFeatureExtractor(max_length=50), noise(32000)
    features = extractor(waveform, return_tensors="pt", return_attention_mask=True, **options)
    assert computed == [32000 if kept is None else extractor.num_samples(kept)]
    frames = fbank(waveform)[:kept]
    torch.testing.assert_close(features.input_values[0], extractor.normalize(frames), atol=2e-6, rtol=0)
    assert features.attention_mask.sum() == len(frames)


def test_steps_leave_the_tensors_of_the_caller_as_they_are():
    extractor, waveform = ASTFeatureExtractor(max_length=60), noise(8000)
    kept = waveform.clone()
    fitted = extractor.fit_length(extractor.fbank(extractor.to_waveforms(waveform)))
    before = fitted.clone()
    extractor.normalize(fitted)
    assert torch.equal(fitted, before) and torch.equal(waveform, kept)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("position", [0, 4001, 7999])
def test_one_sample_that_is_no_number_is_refused(value, position):
    waveform = noise(8000)
    waveform[position] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        ASTFeatureExtractor()(waveform, return_tensors="pt")


def test_large_finite_samples_are_taken():
    waveform = torch.full((8000,), 3e38)  # their sum is infinite, they are not
    assert len(ASTFeatureExtractor().to_waveforms(waveform)) == 1
