"""Patchout: in training alone, one draw a batch, positions before the draw, and no clip is left without a patch."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import make_tiny_config, random_model
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTForAudioClassification
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.training.building import build_model

close = torch.testing.assert_close
pytestmark = pytest.mark.usefixtures("one_thread")

# A grid of 6 x 10 patches.
GRID = {"num_mel_bins": 66, "max_length": 106}
SOME = {"patchout_rows": 2, "patchout_columns": 4, "patchout_patches": 5}
MOST = {"patchout_rows": 5, "patchout_columns": 9}
ALL_BUT_ONE = {"patchout_patches": 59}


def make_model(**patchout) -> ASTForAudioClassification:
    return random_model(make_tiny_config(**GRID, **patchout))


def with_patchout(model, **patchout) -> ASTForAudioClassification:
    """The same weights, in training mode."""
    changed = ASTForAudioClassification(make_tiny_config(**GRID, **patchout))
    changed.load_state_dict(model.state_dict())
    return changed.train()


def spectrograms(*frames: int) -> dict[str, torch.Tensor]:
    """Clips of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(len(frames), max(frames), 66, generator=generator)
    mask = torch.arange(max(frames)) < torch.tensor(frames).unsqueeze(1)
    return {"input_values": batch, "attention_mask": mask.long()}


def tokens(model, **inputs) -> torch.Tensor:
    return model.audio_spectrogram_transformer(**inputs).last_hidden_state


@pytest.mark.parametrize(
    ("patchout", "kept"),
    [
        ({"patchout_rows": 2}, 4 * 10),
        ({"patchout_columns": 4}, 6 * 6),
        ({"patchout_patches": 13}, 60 - 13),
        (SOME, 4 * 6 - 5),
        (MOST, 1),
        (ALL_BUT_ONE, 1),
    ],
)
def test_a_training_batch_keeps_as_many_patches_as_it_is_told(patchout, kept):
    model = make_model(**patchout)
    inputs = spectrograms(106, 106)["input_values"]
    assert tokens(model, input_values=inputs).shape[1] == 2 + 60
    assert tokens(model.train(), input_values=inputs).shape[1] == 2 + kept


@pytest.mark.parametrize("frames", [16, 40, 56, 300])
def test_clips_of_other_lengths_lose_the_same_share_of_their_columns(frames):
    columns = (frames - 16) // 10 + 1
    model = make_model(patchout_columns=4).train()
    assert tokens(model, **spectrograms(frames)).shape[1] == 2 + 6 * (columns - columns * 4 // 10)


def test_evaluation_does_not_know_of_it():
    plain, inputs = make_model(), spectrograms(106, 60)
    changed = with_patchout(plain, **SOME).eval()
    torch.testing.assert_close(changed(**inputs).logits, plain(**inputs).logits, atol=1e-5, rtol=0)


def test_nothing_changes_at_0_not_even_the_next_random_number():
    plain, inputs = make_model(), spectrograms(106, 60)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    logits = copy.deepcopy(plain).train()(**inputs).logits
    assert torch.equal(torch.rand(1), expected)
    found = with_patchout(plain, patchout_rows=0)(**inputs).logits
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("patchout", [SOME, MOST, ALL_BUT_ONE], ids=["some", "most", "all but one"])
def test_kept_patches_are_those_of_the_full_grid_with_their_positions(patchout):
    """What enters the first layer is a part of what enters it without patchout, in its order."""
    plain, inputs = make_model(), spectrograms(106, 106)["input_values"]
    full = plain.audio_spectrogram_transformer.embeddings(inputs)
    changed = with_patchout(plain, **patchout).audio_spectrogram_transformer
    torch.manual_seed(0)
    entered = changed(inputs, output_hidden_states=True).hidden_states[0]
    # Where each token of the first clip stands in the full grid; it has to be the same place in the second.
    places = [(full[0] - token).abs().amax(dim=1).argmin().item() for token in entered[0]]
    assert places == sorted(set(places)) and places[:2] == [0, 1]
    assert torch.equal(entered, full[:, places])
    rows = {(place - 2) // 10 for place in places[2:]}
    columns = {(place - 2) % 10 for place in places[2:]}
    assert len(rows) <= 6 - patchout.get("patchout_rows", 0)
    assert len(columns) <= 10 - patchout.get("patchout_columns", 0)


@pytest.mark.parametrize("patchout", [SOME, MOST, ALL_BUT_ONE], ids=["some", "most", "all but one"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_clip_of_a_masked_batch_keeps_a_patch_of_its_own(patchout, implementation):
    """The gradient of each clip's logits with respect to its own frames is never all 0."""
    model = with_patchout(make_model(), **patchout)
    model.set_attn_implementation(implementation)
    for seed in range(30):
        torch.manual_seed(seed)
        inputs = spectrograms(106, 16, 35)
        inputs["input_values"].requires_grad_()
        model(**inputs).logits.sum().backward()
        heard = inputs["input_values"].grad.abs().amax(dim=2) > 0  # (batch, frames)
        assert heard.any(dim=1).all()
        assert not (heard & (inputs["attention_mask"] == 0)).any()


def test_padding_has_no_say_in_a_clip_that_is_patched_out():
    model = with_patchout(make_model(), **SOME)
    outputs = []
    for content in (0.0, float("nan")):
        torch.manual_seed(0)
        inputs = spectrograms(106, 40)
        inputs["input_values"].masked_fill_((inputs["attention_mask"] == 0).unsqueeze(-1), content)
        outputs.append(model(**inputs).logits)
    close(*outputs)


def test_every_patch_is_kept_equally_often():
    embeddings = make_model(**SOME).train().audio_spectrogram_transformer.embeddings
    torch.manual_seed(0)
    counts = torch.zeros(60)
    for _ in range(3000):
        counts[embeddings.draw_patches(106)] += 1
    expected = 3000 * 19 / 60
    assert (counts - expected).abs().max() < 0.15 * expected  # some 4.5 standard deviations


def test_one_seed_gives_one_draw_under_every_implementation():
    model, inputs = with_patchout(make_model(), **SOME), spectrograms(106, 60)
    logits = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        torch.manual_seed(3)
        logits.append(model(**inputs).logits)
    close(*logits)
    assert not torch.allclose(model(**inputs).logits, logits[0])  # the next draw is another


@pytest.mark.parametrize(
    ("patchout", "words"),
    [
        ({"patchout_rows": 6}, "patchout_rows of 0 to 5"),
        ({"patchout_columns": 10}, "patchout_columns of 0 to 9"),
        ({"patchout_rows": 3, "patchout_columns": 5, "patchout_patches": 15}, "patchout_patches of 0 to 14"),
        ({"patchout_rows": -1}, "got -1"),
    ],
)
def test_what_leaves_no_patch_is_refused(patchout, words):
    with pytest.raises(StrictDataclassError, match=words):
        make_tiny_config(**GRID, **patchout)


def test_recipe_keys_reach_the_model_and_are_off_by_default(tmp_path):
    make_model(**SOME).save_pretrained(tmp_path)
    labels = [f"LABEL_{index}" for index in range(5)]
    wanted = SimpleNamespace(**SOME)
    for arguments, rows in (
        (ModelArguments(str(tmp_path), **SOME), wanted.patchout_rows),
        (ModelArguments(str(tmp_path)), 0),  # what another run did is not a default
        (ModelArguments("tiny224", num_hidden_layers=1, patchout_rows=3), 3),
    ):
        assert build_model(arguments, labels).config.patchout_rows == rows


def test_stock_loads_what_was_trained_with_it(tmp_path):
    model, inputs = make_model(**SOME, head_layer_norm_eps=None), spectrograms(106)["input_values"]
    model.save_pretrained(tmp_path)
    stock = transformers.ASTForAudioClassification.from_pretrained(tmp_path)
    close(stock(inputs).logits, model(inputs).logits)
