"""Mean and deviation of the training clips: every real frame once."""

import re
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from helpers import end_of
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import resample

from modeling_ast import AudioError
from modeling_ast.commands.statistics import main
from modeling_ast.data.recipes import RecipeError

SCRIPT = Path(__file__).resolve().parents[1] / "modeling_ast" / "commands" / "statistics.py"

MAX_LENGTH, MEL_BINS = 40, 32
# Samples and rate of the training clips: shorter and longer than 40 frames, which are 6640 samples at 16 kHz.
CLIPS = [(6640, 16000), (3200, 16000), (9000, 16000), (2400, 8000), (4000, 16000), (8000, 16000), (450, 16000)]
RECIPE = f"""
model_name_or_path: tiny224
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 64
max_length: {MAX_LENGTH}
num_mel_bins: {MEL_BINS}
disable_tqdm: true
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clips with an offset and of growing loudness, two labels in turn; the loudest is held out."""
    folder, generator = tmp_path_factory.mktemp("clips"), torch.Generator().manual_seed(0)
    for number, (samples, rate) in enumerate([*CLIPS, (8000, 16000)]):
        sound = 0.05 + 0.001 * (number + 1) * torch.randn(samples, generator=generator)
        path = folder / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, sound.clamp(-1, 1).numpy(), rate, subtype="FLOAT")
    (folder / "validation_list.txt").write_text(f"b/{len(CLIPS)}.wav\n")
    (folder / "recipe.yaml").write_text(f"{RECIPE}dataset_name: {folder}\noutput_dir: {folder / 'run'}\n")
    return folder


def run(folder: Path, *argv) -> tuple[float, float]:
    return main([str(folder / "recipe.yaml"), *map(str, argv)])


def spectrograms(folder: Path) -> list[torch.Tensor]:
    """Of the training clips, in the order of the data, by torchaudio; not cut yet."""
    found = []
    for path in [folder / "ab"[number % 2] / f"{number}.wav" for number in (0, 2, 4, 6, 1, 3, 5)]:
        samples, rate = soundfile.read(path, dtype="float32")
        waveform = resample(torch.from_numpy(samples), rate, 16000)
        waveform = (waveform - waveform.mean())[None]
        settings = {"htk_compat": True, "window_type": "hanning", "dither": 0.0, "num_mel_bins": MEL_BINS}
        found.append(fbank(waveform, sample_frequency=16000, **settings))
    return found


def test_equals_torchaudios_features_of_all_real_frames_laid_end_to_end(folder):
    cells = torch.cat([spectrogram[:MAX_LENGTH] for spectrogram in spectrograms(folder)]).double()
    assert run(folder) == pytest.approx((cells.mean().item(), cells.std(correction=0).item()), rel=1e-6)


def test_does_not_depend_on_the_workers(folder):
    assert run(folder, "--dataloader_num_workers=2") == run(folder)


def test_prints_lines_for_a_recipe_and_what_they_were_computed_on(folder, capsys):
    mean, std = run(folder)
    printed = capsys.readouterr().out
    frames = sum(min(MAX_LENGTH, len(spectrogram)) for spectrogram in spectrograms(folder))
    assert printed.startswith(
        f"# of {len(CLIPS)} training clips, {frames} real frames, {MEL_BINS} mel bins at 16000 Hz"
    )
    assert yaml.safe_load(printed) == {"mean": pytest.approx(mean, abs=1e-3), "std": pytest.approx(std, abs=1e-3)}


def test_counts_the_training_clips_that_are_asked_for(folder, capsys):
    assert run(folder, "--max_train_samples=3") != run(folder)
    assert capsys.readouterr().out.startswith("# of 3 training clips")


def test_clip_that_is_too_short_is_named(folder, tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(2):
            soundfile.write(tmp_path / label / f"{number}.wav", [0.1] * (399 + number), 16000)
    (tmp_path / "validation_list.txt").write_text("b/1.wav\n")
    with pytest.raises(AudioError, match=r"a.0\.wav: Expected at least 400 samples .* got 399"):
        run(folder, f"--dataset_name={tmp_path}")


def test_unusable_arguments_end_in_one_sentence(folder):
    with pytest.raises(RecipeError, match="No effect on statistics: orginal"):
        run(folder, "--orginal")
    with pytest.raises(RecipeError, match="nowhere cannot be used: .*no such file"):
        run(folder, "--model_name_or_path=./nowhere")
    status, said = end_of("statistics", folder / "missing.yaml")
    assert status == 2 and re.match("error: .*missing.yaml: cannot be read", said) and "Traceback" not in said
