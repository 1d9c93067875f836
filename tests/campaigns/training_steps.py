"""Section of the benchmark that trains: a step of this package's AST beside one of Transformers' own."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from comparison import DTYPES, agreement, count_stock, make_spectrograms, skipped
from measuring import LayerProducts, Row, in_new_process, resident_bytes, threads, time_in_turn
from transformers.models.audio_spectrogram_transformer import ASTForAudioClassification as StockModel

from modeling_ast import ASTConfig, ASTForAudioClassification

# How far a loss and a gradient may be from stock's, and logits of a GPU, which rounds in another order.
STEP_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
# The patchout of PaSST for 10 s: 4 rows, 40 columns. Source: Koutini et al., "Efficient Training of Audio Transformers
# with Patchout", Interspeech 2022.
PATCHOUT_ROWS, PATCHOUT_COLUMNS = 4, 40


class TrainingStep:
    """One update by AdamW: of the same batch again and again, as nothing but its time is of interest.

    Args:
        model: Ours or stock.
        inputs: Spectrograms (batch, frames, mel bins), on the model's device.
        dtype: bfloat16 computes under autocast, with weights and gradients in float32.
    """

    def __init__(self, model: torch.nn.Module, inputs: torch.Tensor, dtype: torch.dtype):
        self.model, self.inputs, self.dtype = model.train(), inputs, dtype
        self.labels = torch.arange(len(inputs), device=inputs.device) % model.config.num_labels
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        # The first parameter: its gradient comes through all layers.
        self.first = model.get_parameter("audio_spectrogram_transformer.embeddings.patch_embeddings.projection.bias")

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss before the update, and the gradient of the first parameter."""
        self.optimizer.zero_grad()
        with torch.autocast(self.inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(self.inputs, labels=self.labels).loss
        loss.backward()
        self.optimizer.step()
        return loss.detach(), self.first.grad.clone()


def training(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    inputs, work = make_spectrograms(args, args.train_batch_size), f"step, {args.size}, {args.max_length} frames, "
    operations = len(inputs) * count_stock(folder, args.max_length, backward=True)
    for name in args.dtypes:
        dtype, what = DTYPES[name], f"{name}, batch {len(inputs)}"
        ours = ASTForAudioClassification.from_pretrained(folder)
        sides = {"ours": ours, "stock": StockModel.from_pretrained(folder)}
        if patchout := patchout_keys(ours.config):
            sides["patchout"] = ASTForAudioClassification.from_pretrained(folder, **patchout)
        sides = {side: TrainingStep(model, inputs, dtype) for side, model in sides.items()}
        bare = LayerProducts(ours.config, len(inputs) * ours.config.num_tokens, dtype)
        check = agreement(["ours"], STEP_TOLERANCES[dtype])
        seconds = time_in_turn({**sides, "products": bare}, args.rounds, check)
        share = operations / bare.operations * seconds["products"] / seconds["ours"]
        yield Row("training", work + what, seconds["ours"], seconds["stock"], "s", 1.2, share, None, "products")
        if patchout:
            note = ", ".join(["the other side is ours without", *(f"{key} {n}" for key, n in patchout.items())])
            yield Row("training", f"{work}{what}, patchout", seconds["patchout"], seconds["ours"], goal=2.7, note=note)
        else:
            yield skipped("training", f"{work}{what}, patchout", "no row or column of patches can be left out")
        del sides, ours
        try:
            peaks = [in_new_process(training_memory, side, args, folder, dtype) for side in ("ours", "stock")]
        except OSError as error:
            yield skipped("training", f"{work}{what}, memory", str(error))
            continue
        note = "peak of a process of its own over what its imports take"
        yield Row("training", f"{work}{what}, memory", *peaks, unit="MB", goal=1.0, note=note)


def patchout_keys(config: ASTConfig) -> dict[str, int]:
    """PaSST's share of rows and columns, on this grid; empty where it is too small for any."""
    rows = config.num_frequency_patches * PATCHOUT_ROWS // 12
    columns = config.num_time_patches * PATCHOUT_COLUMNS // 101
    return {"patchout_rows": rows, "patchout_columns": columns} if rows and columns else {}


def training_memory(side: str, args: argparse.Namespace, folder: Path, dtype: torch.dtype) -> float:
    """Megabytes that model, gradients, optimiser and activations of one side take at the most, over two steps."""
    before = resident_bytes()
    with threads(args.num_threads):
        model = {"ours": ASTForAudioClassification, "stock": StockModel}[side].from_pretrained(folder)
        step = TrainingStep(model, make_spectrograms(args, args.train_batch_size), dtype)
        step(), step()  # the optimiser's own tensors are there from the first one on
    return (resident_bytes(peak=True) - before) / 1e6
