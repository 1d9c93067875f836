"""Pictures of what a model hears."""

import os

import torch

from modeling_ast import ASTFeatureExtractor


def plot_tags(
    waveform: torch.Tensor,
    extractor: ASTFeatureExtractor,
    tags: list[dict],
    path: str | os.PathLike,
    title: str = "",
) -> None:
    """Draw the log-mel spectrogram of a clip beside its predicted labels, into a picture file.

    Args:
        waveform: float32 tensor of shape (samples,) at the extractor's rate.
        extractor: Of the features to show: the frames that the model sees, without padding.
        tags: What the audio-classification pipeline gives: `[{"label": ..., "score": ...}, ...]`.
        path: Of the picture; the suffix chooses the format.
        title: Above the spectrogram.
    """
    from matplotlib.figure import Figure  # the object interface needs no display

    spectrogram = extractor.fbank(extractor.to_waveforms(waveform))[0][: extractor.max_length]  # (frames, mel bins)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1.4))
    image = left.imshow(
        spectrogram.T.numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, 0.01 * len(spectrogram), 0, extractor.num_mel_bins),
        vmin=float(spectrogram.quantile(0.05)) if spectrogram.numel() < 2**24 else None,
    )
    left.set(xlabel="time (s)", ylabel="mel bin", title=title)
    figure.colorbar(image, ax=left, label="log energy")
    names, scores = [tag["label"] for tag in tags], [tag["score"] for tag in tags]
    right.barh(range(len(tags)), scores, color="#c0504d")
    right.set(xlim=(0, 1), yticks=range(len(tags)), yticklabels=names, xlabel="score", title="predicted labels")
    right.invert_yaxis()
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
