"""Published checkpoints of AST give the published logits, and SSAST's load. Needs the network: `pytest -m network`."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config, random_model
from transformers import AutoModelForAudioClassification

from modeling_ast import ASTFeatureExtractor, load_waveform
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.training.building import build_model

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Published:
    """What Transformers' own conversion script expects of a checkpoint: its strides, frames and first three logits."""

    name: str
    stride: int
    frames: int
    logits: tuple[float, float, float]


# Source: the expected values in Transformers' conversion script for AST.
CHECKPOINTS = (
    Published("MIT/ast-finetuned-audioset-10-10-0.4593", 10, 1024, (-0.8760, -7.0042, -8.6602)),
    Published("MIT/ast-finetuned-audioset-10-10-0.450", 10, 1024, (-1.1986, -7.0903, -8.2718)),
    Published("MIT/ast-finetuned-audioset-10-10-0.448", 10, 1024, (-2.6128, -8.0080, -9.4344)),
    Published("MIT/ast-finetuned-audioset-10-10-0.448-v2", 10, 1024, (-1.5080, -7.4534, -8.8917)),
    Published("MIT/ast-finetuned-audioset-12-12-0.447", 12, 1024, (-0.5050, -6.5833, -8.0843)),
    Published("MIT/ast-finetuned-audioset-14-14-0.443", 14, 1024, (-0.3826, -7.0336, -8.2413)),
    Published("MIT/ast-finetuned-audioset-16-16-0.442", 16, 1024, (-1.2113, -6.9101, -8.3470)),
    Published("MIT/ast-finetuned-speech-commands-v2", 10, 128, (6.1589, -8.0566, -8.7984)),
)


@torch.no_grad()
def compare(published: Published, name: str, waveform: torch.Tensor) -> None:
    """Load a checkpoint in both ways that people do, and compare what it says of a clip with what is published."""
    model = AutoModelForAudioClassification.from_pretrained(name)
    config = model.config
    assert type(model).__module__.startswith("modeling_ast")
    found = config.frequency_stride, config.time_stride, config.max_length
    assert found == (published.stride, published.stride, published.frames)
    inputs = ASTFeatureExtractor.from_pretrained(name)(waveform, sampling_rate=16000, return_tensors="pt")
    expected = torch.tensor(published.logits)
    torch.testing.assert_close(model(**inputs).logits[0, :3], expected, rtol=0, atol=TOLERANCE)
    labels = [config.id2label[index] for index in range(config.num_labels)]
    trained = build_model(ModelArguments(model_name_or_path=name), labels, allow_fresh_head=False)
    torch.testing.assert_close(trained.eval()(**inputs).logits[0, :3], expected, rtol=0, atol=TOLERANCE)


def audioset_clip() -> torch.Tensor:
    from huggingface_hub import hf_hub_download

    repository = "nielsr/audio-spectogram-transformer-checkpoint"  # spelt so
    return load_waveform(hf_hub_download(repository, "sample_audio.flac", repo_type="dataset"))


def speech_commands_clip() -> torch.Tensor:
    """The first validation clip of Speech Commands V2, of the Parquet files that the Hub keeps beside the data set."""
    from datasets import Audio, load_dataset

    try:
        rows = load_dataset(
            "google/speech_commands",
            data_dir="v0.02",
            split="validation",
            streaming=True,
            revision="refs/convert/parquet",
        )
        row = next(iter(rows.cast_column("audio", Audio(decode=False))))
    except (OSError, ValueError) as error:
        pytest.skip(f"the Hub gives no first clip of Speech Commands: {error}")
    return load_waveform(row["audio"]["bytes"])


@pytest.mark.network
@pytest.mark.parametrize("published", CHECKPOINTS, ids=lambda published: published.name)
def test_a_published_checkpoint_gives_the_published_logits(published):
    clip = speech_commands_clip() if published.frames == 128 else audioset_clip()
    compare(published, published.name, clip)


@pytest.mark.network
@pytest.mark.parametrize(("size", "width"), [("tiny", 192), ("small", 384), ("base", 768)])
def test_a_published_ssast_is_a_start(size, width):
    """The body alone is trained: whatever head the repository has is replaced."""
    name = f"Simon-Kotchou/ssast-{size}-patch-audioset-16-16"
    config = build_model(ModelArguments(model_name_or_path=name), ["rain", "dog"]).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_labels) == (width, 12, 2)
    assert (config.frequency_stride, config.time_stride, config.max_length) == (16, 16, 1024)


@pytest.fixture
def local(tmp_path) -> tuple[Published, str, torch.Tensor]:
    """A folder as on the Hub, a clip, and what the model says of it."""
    model = random_model(make_tiny_config(max_length=128, num_mel_bins=128))
    extractor = ASTFeatureExtractor(max_length=128)
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    waveform = torch.randn(16000, generator=torch.Generator().manual_seed(0)) / 10
    with torch.no_grad():
        logits = model(**extractor(waveform, return_tensors="pt")).logits[0, :3].tolist()
    return Published("local", 10, 128, tuple(logits)), str(tmp_path / "model"), waveform


def test_the_comparison_accepts_the_right_logits_alone(local):
    published, folder, waveform = local
    compare(published, folder, waveform)
    other = tuple(logit + 2 * TOLERANCE for logit in published.logits)
    with pytest.raises(AssertionError, match="not close"):
        compare(Published("local", 10, 128, other), folder, waveform)
    with pytest.raises(AssertionError):
        compare(Published("local", 12, 128, published.logits), folder, waveform)


def test_the_readme_of_the_recipes_lists_every_checkpoint():
    readme = (Path(__file__).resolve().parents[1] / "configs" / "README.md").read_text(encoding="utf-8")
    for published in CHECKPOINTS:
        assert f"`{published.name}`" in readme


def test_the_group_is_left_out_unless_it_is_asked_for(request):
    items = [item for item in request.session.items if item.name.startswith("test_a_published_checkpoint_gives")]
    assert len(items) in (0, len(CHECKPOINTS))  # none where single tests were chosen
    assert all(any(mark.name == "skip" for mark in item.iter_markers()) for item in items)
