"""A run without labels: its model, its batches, and its trainer."""

import logging
from functools import partial
from typing import Any

import torch

from modeling_ast import ASTConfig, ASTFeatureExtractor
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.processes import together
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.body import BodyTrainer, without_labels
from modeling_ast.training.building import build_model_and_extractor
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.losses import TrainingLosses
from modeling_ast.training.masked_autoencoder import ASTForMaskedPretraining, draw_kept
from modeling_ast.training.pretraining_arguments import PretrainingRecipe
from modeling_ast.training.probe import Probe, read_probe
from modeling_ast.training.results import RunRecord
from modeling_ast.training.stages import prepare_clips

logger = logging.getLogger(__name__)


class MaskingCollator(AugmentingCollator):
    """Augmented spectrograms, and which patches of each are kept, by the clip's own generator.

    Args:
        args: Those of `AugmentingCollator`.
        config: Of the model.
        mask_ratio: Share of a clip's patches that are masked.
        mask_clones: How often each clip is taken.
        options: As args.
    """

    def __init__(self, *args, config: ASTConfig, mask_ratio: float, mask_clones: int, **options):
        super().__init__(*args, **options)
        self.config, self.mask_ratio, self.mask_clones = config, mask_ratio, mask_clones

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: As `prepare` gives them.

        Returns:
            `input_values` (batch, frames, num_mel_bins), with `attention_mask` (batch, frames) where the padding is
            "longest", or what is handed over in place of them; and `kept` (batch, mask_clones, kept patches) for
            `ASTForMaskedPretraining`.
        """
        batch, draws = self.collate(self.augmented_waveforms(rows), rows)
        frames, masks = [len(each.sources) for each in draws], (self.mask_ratio, self.mask_clones)
        kept = draw_kept(self.config, frames, max(frames), *masks, [row["generator"] for row in rows])
        return {**batch, "kept": kept}


class PretrainingTrainer(BodyTrainer):
    """A trainer whose evaluation writes down what the training tells, and what the probe finds, where there is one.

    Args:
        model: `ASTForMaskedPretraining`.
        probe: Reported at every evaluation.
        options: As for `ASTTrainer`.
    """

    def __init__(self, *, model: ASTForMaskedPretraining, probe: Probe | None = None, **options):
        super().__init__(model=model, **options)
        self.probe = probe
        self.parts = {name: TrainingLosses(self.accelerator) for name in model.part_names}

    def _progress(self) -> dict[str, Any]:
        """As for a training with labels, and the parts of the loss."""
        return {**super()._progress(), "parts": {name: part.state() for name, part in self.parts.items()}}

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        super()._restore_progress(progress)
        for name, part in self.parts.items():
            part.load_state(progress["parts"][name])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Remember the parts of the loss too."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name, part in self.parts.items():
            share = 1 / self.args.gradient_accumulation_steps  # of an update
            part.add(outputs[name].detach().float().mean(), share, self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """What the probe finds; while it trains, written down beside the means of the losses since the last time."""
        metrics = {} if self.probe is None else self.probe.measure(self.trained_model)
        if self.is_in_train:
            losses = {"train_loss": self.losses, **self.parts}
            means = {name: each.recent_mean() for name, each in losses.items() if each.recent_updates}
            if self.record is not None and self.is_world_process_zero():
                row = {"epoch": self.state.epoch, "learning_rate": self.last_rate}
                self.record.add_row({**row, **means, **metrics})
            for each in losses.values():
                each.forget_recent()
            metrics = {**means, **metrics}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@together()
def build_for_pretraining(recipe: PretrainingRecipe) -> tuple[ASTForMaskedPretraining, ASTFeatureExtractor]:
    """The model of a run, which knows no labels, and its feature extractor.

    Raises:
        RecipeError: Keys that do not go together, or with the model to start from.
    """
    name, keys = recipe.model.model_name_or_path, recipe.pretraining
    started, extractor = build_model_and_extractor(recipe.model, [])
    body = started.base_model
    config = without_labels(body.config)
    try:
        model = ASTForMaskedPretraining(
            config, keys.decoder_layers, keys.decoder_width, keys.normalize_targets, keys.utterance_weight
        )
    except ValueError as error:
        raise RecipeError(f"{name} cannot be pre-trained by this recipe: {error}") from error
    model.base_model.load_state_dict(body.state_dict())
    sizes = {part: sum(p.numel() for p in module.parameters()) / 1e6 for part, module in model.named_children()}
    logger.info(
        f"{name}: {sizes.pop(model.base_model_prefix):.2f} million parameters, {config.max_length} frames, "
        f"{config.num_patches} patches; {sum(sizes.values()):.2f} million more to learn by"
    )
    return model, extractor


def make_pretrainer(
    recipe: PretrainingRecipe, splits: AudioSplits, model: ASTForMaskedPretraining, extractor: ASTFeatureExtractor
) -> PretrainingTrainer:
    """The trainer of a run.

    Args:
        recipe: Of the run.
        splits: Of clips, not decoded.
        model: To train.
        extractor: Of its features.

    Raises:
        RecipeError, DataError, AudioError: Keys that do not go together, a probe whose recipe or data cannot be used,
            or a clip whose length cannot be read.
    """
    keys, training_args = recipe.pretraining, recipe.training
    masks = {"mask_ratio": keys.mask_ratio, "mask_clones": keys.mask_clones}
    make_collator = partial(MaskingCollator, config=model.config, **masks)
    of_training = prepare_clips(recipe, splits, extractor, make_collator, RunRecord(training_args.output_dir))
    with together():
        probe = None
        if keys.probe_recipe is not None:
            probe = read_probe(keys.probe_recipe, extractor, training_args.per_device_eval_batch_size)
    with together():
        try:
            trainer = PretrainingTrainer(
                model=model,
                args=training_args,
                eval_dataset=of_training["train_dataset"],  # which is asked for and not used
                data_collator=of_training["train_collator"],
                processing_class=extractor,
                probe=probe,
                **of_training,
            )
        except ValueError as error:  # of keys that do not go together, by Transformers' or Accelerate's own check
            raise RecipeError(f"This recipe cannot be trained by: {' '.join(str(error).split())}") from error
        if probe is not None and trainer.is_sharded:
            raise RecipeError("probe_recipe needs the whole model in one process: leave it out, or FSDP.")
    return trainer
