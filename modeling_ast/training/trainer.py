"""Transformers' `Trainer`, with batches of their own for training."""

from collections.abc import Callable

from torch.utils.data import DataLoader
from transformers import Trainer


class ASTTrainer(Trainer):
    """`Trainer` has one data collator for all; here training has its own, which augments.

    Args:
        train_collator: Makes training batches; `data_collator` makes the others.
    """

    def __init__(self, *args, train_collator: Callable, **kwargs):
        super().__init__(*args, **kwargs)
        self.train_collator = train_collator

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the script writes a card that says more, and `push_to_hub` must not replace it."""

    def get_train_dataloader(self) -> DataLoader:
        collator, self.data_collator = self.data_collator, self.train_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator
