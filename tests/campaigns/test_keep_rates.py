"""Dropping patches half-way is what the campaign says that it is."""

import pytest
import torch
from keep_rates import attention_of_special_tokens, forward_keeping

FRAMES = 64


@pytest.fixture
def features(tiny_model):
    return torch.randn(3, FRAMES, tiny_model.config.num_mel_bins, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("after", [1, 2])
def test_all_patches_give_the_scores_of_the_model(tiny_model, features, after, fuses):
    expected = tiny_model.eval()(features).logits
    torch.testing.assert_close(forward_keeping(tiny_model, after, 1.0, fuses, features), expected, atol=1e-5, rtol=0)
    if after < tiny_model.config.num_hidden_layers:
        other = forward_keeping(tiny_model, after, 0.3, fuses, features)
        assert (other - expected).abs().max() > 1e-6


@torch.inference_mode()
def test_patches_are_ranked_by_the_attention_of_the_model(tiny_model, features):
    output = tiny_model.eval()(features, output_attentions=True, output_hidden_states=True)
    for layer, hidden, weights in zip(
        tiny_model.audio_spectrogram_transformer.encoder.layer, output.hidden_states, output.attentions, strict=False
    ):
        expected = weights[:, :, :2, 2:].mean(dim=(1, 2))
        torch.testing.assert_close(attention_of_special_tokens(layer, hidden), expected)


@torch.inference_mode()
def test_what_is_fused_alone_is_the_mean_of_the_others(tiny_model, features):
    """Of patches that are all alike one, and what is fused of the others, are two of them."""
    alike = features.mean(dim=(1, 2), keepdim=True).expand_as(features)
    body = tiny_model.eval().audio_spectrogram_transformer
    body.embeddings.position_embeddings.data[:, 2:] = 0
    num_patches = body.embeddings.position_embeddings.shape[1] - 2
    two = forward_keeping(tiny_model, 1, 2 / num_patches, False, alike)
    torch.testing.assert_close(forward_keeping(tiny_model, 1, 1 / num_patches, True, alike), two, atol=1e-6, rtol=0)
    assert (forward_keeping(tiny_model, 1, 1 / num_patches, False, alike) - two).abs().max() > 1e-5
