"""The learning rate of each parameter: the head's own, and a lower one the farther a layer is from the head."""

import re

from torch import nn
from torch.optim import Optimizer

from modeling_ast.data.recipes import RecipeError

_LAYER = re.compile(r"\bencoder\.layer\.(\d+)\.")


def rate_factors(model: nn.Module, layer_decay: float = 1.0, head_factor: float = 1.0) -> dict[nn.Parameter, float]:
    """By what the learning rate of each parameter is multiplied.

    Final norm and head learn at the full rate, the head's times a factor of its own. Each layer learns at
    `layer_decay` times the rate of what is above it; lowest are patch kernel, positions and special tokens.

    Args:
        model: Of which the names of the parameters tell where they are, also in the wrappers of adapters, compilation
            and sharding.
        layer_decay: In (0, 1]; 1 is the full rate everywhere.
        head_factor: Above 0.

    Source: Bao et al., "BEiT" (2022), for rates by layer; embeddings, layers and the rest are told apart as in the
        fine-tuning of Huang et al., "Masked Autoencoders that Listen" (2022).
    """
    layers = {name: int(found[1]) for name, _ in model.named_parameters() if (found := _LAYER.search(name))}
    num_layers = 1 + max(layers.values(), default=-1)

    def factor(name: str) -> float:
        if ".classifier." in f".{name}":
            return head_factor
        if ".embeddings." in f".{name}":
            return layer_decay ** (num_layers + 1)
        return layer_decay ** (num_layers - layers.get(name, num_layers))

    return {parameter: factor(name) for name, parameter in model.named_parameters()}


def split_groups(optimizer: Optimizer, factors: dict[nn.Parameter, float]) -> float:
    """Divide each group of an optimiser by the rates of its parameters; other settings stay.

    Returns:
        The factor of the first group, by whose rate that of a run is told: 1 where any parameter has it.

    Raises:
        RecipeError: There are such rates, and the optimiser has other parameters than the model.
    """
    filled = [group for group in optimizer.param_groups if group["params"]]
    if set(factors.values()) == {1}:
        optimizer.param_groups = filled
        return 1.0
    if any(parameter not in factors for group in filled for parameter in group["params"]):
        raise RecipeError(
            "layer_learning_rate_decay and head_learning_rate_factor need an optimiser that updates all parameters at "
            "once, such as adamw_torch: another optim."
        )
    for group in filled:
        parameters, rate = group["params"], group["lr"]
        group["params"] = []
        for factor in dict.fromkeys(factors[parameter] for parameter in parameters):
            own = [parameter for parameter in parameters if factors[parameter] == factor]
            optimizer.add_param_group({**group, "params": own, "lr": rate * factor})
    filled = [group for group in optimizer.param_groups if group["params"]]
    optimizer.param_groups = sorted(filled, key=lambda group: factors[group["params"][0]] != 1)
    return factors[optimizer.param_groups[0]["params"][0]]
