"""The original's learning-rate schedule, with a warm-up that warms up."""

from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def step_schedule(
    optimizer: Optimizer,
    steps_per_epoch: int,
    first_epochs: int,
    epochs_per_step: int,
    factor: float,
    warmup_steps: int = 0,
) -> LambdaLR:
    """A rate that is constant for some epochs, then multiplied by a factor every so many epochs.

    Over the first `warmup_steps` updates it also rises linearly, from 1 / warmup_steps of itself; the decay goes on
    meanwhile. (The original's warm-up leaves the rate at 0 for 50 updates, and overwrites the decay.)

    Args:
        optimizer: Whose groups' rates are scaled.
        steps_per_epoch: Updates an epoch.
        first_epochs: Epochs at the full rate.
        epochs_per_step: Epochs between later decays.
        factor: What the rate is multiplied by.
        warmup_steps: Updates; 0 means none.

    Source: the original's recipes (MultiStepLR, stepped once an epoch).
    """
    scale = partial(
        _scale,
        steps_per_epoch=steps_per_epoch,
        first_epochs=first_epochs,
        epochs_per_step=epochs_per_step,
        factor=factor,
        warmup_steps=warmup_steps,
    )
    return LambdaLR(optimizer, scale)


def _scale(
    step: int, steps_per_epoch: int, first_epochs: int, epochs_per_step: int, factor: float, warmup_steps: int
) -> float:
    epoch = step // steps_per_epoch  # from 0
    num_decays = 0 if epoch < first_epochs else 1 + (epoch - first_epochs) // epochs_per_step
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmup * factor**num_decays
