"""LoRA: small matrices that are trained beside frozen layers, by PEFT, and are merged into them in the end.

PEFT puts its layers into the model itself. Its own wrapper around the model stays beside: it knows how to save the
adapter alone, and how to merge it, after which the model is what it was before, with other weights.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022).
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.trainer_utils import HubStrategy

from modeling_ast import ASTForAudioClassification
from modeling_ast.modeling_ast import GEOMETRY_KEYS

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from modeling_ast.training.arguments import ASTTrainingArguments

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
# Linear layers of an encoder layer: what a recipe calls them, and where they are in it. All of them together reach
# what full fine-tuning does, where query and value alone do not always (Dettmers et al., "QLoRA", 2023, section 4).
TARGETS = {
    **{name: f"attention.attention.{name}" for name in ("query", "key", "value")},
    **{name: name for name in ("attention.output.dense", "intermediate.dense", "output.dense")},
}

_CARD = """---
library_name: peft
---

A LoRA adapter, and the classifier trained with it, in PEFT's format, for the weights that training started from{which}
The folder above holds the model that it was merged into, which needs neither PEFT nor this.

"""
_BY_RECIPE = ", as the recipe in the folder above makes them.\n"
_BY_NAME = """:

```python
from modeling_ast import ASTForAudioClassification
from peft import PeftModel

start = ASTForAudioClassification.from_pretrained(
    "{start}",
    {sizes},
    ignore_mismatched_sizes=True,
)
model = PeftModel.from_pretrained(start, "{folder}")
```
"""


def refuse_unusable_lora(args: ASTTrainingArguments) -> None:
    """
    Raises:
        ValueError: A key without `lora_rank`, a layer that is none, PEFT is not installed, or keys that do not go with
            an adapter.
    """
    if not args.lora_rank:
        for name in ("lora_alpha", "lora_targets"):
            if getattr(args, name) is not None:
                raise ValueError(f"{name} has no effect without lora_rank.")
        return
    if find_spec("peft") is None:
        raise ValueError("lora_rank needs PEFT: pip install 'modeling_ast[lora]', or pip install peft.")
    if wrong := [name for name in args.lora_targets or () if name not in TARGETS]:
        raise ValueError(f"Expected lora_targets of {', '.join(TARGETS)}, got {wrong[0]}.")
    if args.freeze_backbone:
        raise ValueError("Expected freeze_backbone or lora_rank, got both: the one trains the classifier alone.")
    if args.activation_checkpointing and (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError("Expected use_reentrant false with lora_rank: past frozen embeddings no gradient comes.")
    if args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise ValueError("Expected hub_strategy end with lora_rank: in a checkpoint the adapter is not merged.")


def add_adapters(
    model: ASTForAudioClassification,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    start: str | None = None,
) -> PeftModel:
    """Freeze a model, and put an adapter beside linear layers of its encoder; the classifier is trained whole.

    Args:
        model: Trained weights; its layers are replaced.
        rank: Of the adapter, at least 1.
        alpha: Over the rank, what the adapter's output is multiplied by; `None` is twice the rank, as the paper has it
            for RoBERTa large.
        targets: Of `TARGETS`; `None` means all.
        start: A folder or a name on the Hub from which `from_pretrained` loads these weights, where there is one.

    Returns:
        What saves the adapter and merges it; its `base_model.model` is the model.
    """
    from peft import LoraConfig

    layers = "|".join(re.escape(TARGETS[name]) for name in targets or TARGETS)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=rf".*\.layer\.\d+\.({layers})",
        modules_to_save=["classifier"],
    )
    total = model.num_parameters()
    adapters = _adapt(model, config)
    adapters.peft_config["default"].base_model_name_or_path = start
    trained = model.num_parameters(only_trainable=True)
    logger.info(f"LoRA of rank {rank}: {trained:,} parameters are trained, beside {total:,}.")
    return adapters


def _adapt(model: ASTForAudioClassification, config: LoraConfig) -> PeftModel:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)  # which PEFT asks for
        return get_peft_model(model, config)


def merge_weights(weights: Mapping[str, torch.Tensor], adapters: PeftModel) -> ASTForAudioClassification:
    """A model of its own, into which an adapter of given weights is merged.

    Args:
        weights: Of the adapted model, as its `state_dict` names them.
        adapters: Of that model.
    """
    model = ASTForAudioClassification(copy.deepcopy(adapters.base_model.model.config))
    own = _adapt(model, copy.deepcopy(adapters.peft_config["default"]))
    model.load_state_dict(weights)
    return own.merge_and_unload()


def save_adapter(folder: Path, adapters: PeftModel) -> None:
    """Write the adapter and the classifier as PEFT does, into a folder that is there."""
    config, start = adapters.base_model.model.config, adapters.peft_config["default"].base_model_name_or_path
    sizes = ", ".join(f"{name}={getattr(config, name)}" for name in ("num_labels", *GEOMETRY_KEYS))
    which = _BY_NAME.format(start=start, sizes=sizes, folder=ADAPTER_FOLDER) if start else _BY_RECIPE
    card = _CARD.format(which=which)
    (folder / "README.md").write_text(card, encoding="utf-8")  # to which PEFT adds what the Hub reads
    adapters.save_pretrained(folder)
