"""Trainings whose model learns by something that is thrown away: what comes out is its body, without a head."""

import copy

import torch

from modeling_ast import ASTConfig, ASTModel
from modeling_ast.training.trainer import ASTTrainer


class BodyTrainer(ASTTrainer):
    """A trainer that saves an `ASTModel` at the end: the body of its model, and that of the average."""

    @property
    def trained_model(self) -> ASTModel:
        """The body."""
        return self.model.base_model

    def averaged_model(self) -> ASTModel:
        """A body of its own that has the average for weights."""
        averaged = ASTModel(without_labels(self.model.config))
        averaged.load_state_dict(_of_body(self.average.weights))
        return averaged

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """All of the model into a checkpoint; at the end the body alone."""
        if self._is_saving_checkpoint:
            super()._save(output_dir, state_dict)
            return
        whole, body = self.model, self.trained_model
        body.config, self.model = without_labels(whole.config), body
        try:
            super()._save(output_dir, None if state_dict is None else _of_body(state_dict))
        finally:
            body.config, self.model = whole.config, whole


def without_labels(config: ASTConfig) -> ASTConfig:
    """A copy, as of a model that never had a head."""
    body, default = copy.deepcopy(config), ASTConfig()
    body.id2label, body.label2id = default.id2label, default.label2id
    body.problem_type = body.thresholds = body.unknown_threshold = None
    return body


def _of_body(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = f"{ASTModel.base_model_prefix}."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
