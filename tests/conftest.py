"""What the tests share: a tiny model, its input, and the folders that live outside the repository."""

import gc
import os
import subprocess
import sys
from pathlib import Path

# Before Transformers is imported: it reads this once, and no test may reach for the network, but those that are asked
# for by `-m network`.
os.environ["HF_HUB_OFFLINE"] = "0" if "network" in sys.argv else "1"

import numpy as np
import pytest
import torch
from helpers import leave_out_pictures

from modeling_ast import ASTConfig, ASTForAudioClassification, feature_extraction_ast

# Thousands of short tests leave little garbage, and looking for it takes a tenth of their time.
gc.set_threshold(200_000, 50, 100)

# Two cores: two threads, or one for each of two processes.
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
torch.set_num_threads(NUM_THREADS)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not part of the repository")
    return folder


# Each takes more than ten seconds to make.
SLOW_FIXTURES = {"exported", "exchange"}


@pytest.hookimpl(tryfirst=True)  # before what is slow is left out
def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if "network" in item.keywords and os.environ["HF_HUB_OFFLINE"] == "1":
            item.add_marker(pytest.mark.skip(reason="needs the network: pytest -m network"))


@pytest.fixture(scope="session")
def reference() -> Path:
    """Outputs of the original implementation."""
    return _shared_folder("reference")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings."""
    return _shared_folder("data")


@pytest.fixture(autouse=True)
def fixed_seed():
    """What a test draws without a generator of its own is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def light_garbage_collection():
    """What is loaded by now stays: each run of the Trainer collects garbage, and would look at a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread():
    """For tiny tensors: on a busy machine two threads wait for each other a hundred times as long as they work."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture
def no_pictures(monkeypatch):
    leave_out_pictures(monkeypatch)


@pytest.fixture(scope="module")
def no_pictures_in_module():
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        yield


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Samples of each clip that an extractor computes features of, as they are computed."""
    found, fbank = [], feature_extraction_ast.fbank

    def note(waveforms, *args):
        found.extend([waveforms.shape[-1]] * waveforms.shape[:-1].numel())
        return fbank(waveforms, *args)

    monkeypatch.setattr(feature_extraction_ast, "fbank", note)
    return found


def call_with_portable_fft(module: str, function: str, folder: Path, output: Path) -> dict[str, np.ndarray]:
    """What `function(folder)` of a test module gives, a dict of arrays, where the FFT is the same on every processor.

    MKL has an FFT for each family of processors, and they round differently: by up to 3e-4 in the quiet bins of the
    log-mel features, in torchaudio as here, which is more than the 1e-4 within which features have to equal the
    original's files. `MKL_CBWR=COMPATIBLE` makes all of them compute alike, and is read once, when MKL starts: hence
    a process of its own.

    Args:
        module: Name of a module of the tests.
        function: Name of a function in it.
        folder: Its argument.
        output: File that the arrays travel in.

    Source: "Conditional Numerical Reproducibility" in the developer guide of Intel's oneMKL.
    """
    code = (
        "import sys, pathlib, numpy, importlib\n"
        "module, function, folder, output = sys.argv[1:]\n"
        "arrays = getattr(importlib.import_module(module), function)(pathlib.Path(folder))\n"
        "numpy.savez(output, **arrays)\n"
    )
    tests = Path(__file__).resolve().parent
    environment = {
        **os.environ,
        "MKL_CBWR": "COMPATIBLE",
        "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent))),
    }
    subprocess.run(
        [sys.executable, "-c", code, module, function, str(folder), str(output)],
        env=environment,
        check=True,
        timeout=120,
    )
    return dict(np.load(output))


@pytest.fixture
def tiny_config() -> ASTConfig:
    return make_tiny_config()


@pytest.fixture
def tiny_model(tiny_config) -> ASTForAudioClassification:
    return random_model(tiny_config)


@pytest.fixture
def input_values(tiny_config) -> torch.Tensor:
    """Three spectrograms."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, tiny_config.max_length, tiny_config.num_mel_bins, generator=generator)


def make_tiny_config(**overrides) -> ASTConfig:
    """A grid of 2 x 5 patches, and the original's epsilons."""
    tiny = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-6,
        "head_layer_norm_eps": 1e-5,
        "max_length": 64,
        "num_mel_bins": 32,
        "num_labels": 5,
    }
    if "id2label" in overrides:
        del tiny["num_labels"]
    return ASTConfig(**{**tiny, **overrides})


def random_model(config: ASTConfig, model_class=ASTForAudioClassification):
    """A model whose every parameter says something.

    Fresh weights are too tame to test with: attention is almost uniform, norms are the identity, biases are zero, so
    that two swapped tensors would go unnoticed.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = model_class(config).eval()
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model
