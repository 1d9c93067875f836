"""Pre-train an Audio Spectrogram Transformer on sounds without labels, by a recipe.

    accelerate launch -m modeling_ast.commands.pretrain RECIPE.yaml [--key value ...]
    modeling-ast pretrain RECIPE.yaml [--key value ...]

The model sees a part of the patches of each clip, and learns to predict the others (a masked autoencoder). What comes
into `output_dir` is an AST without a head, and its feature extractor: `model_name_or_path` of a recipe that trains on
labels takes it, and so does `from_pretrained` of Transformers' own classes.

Keys, resuming, checkpoints, averages, several processes, signals, dry runs and exit statuses are those of
`modeling-ast train`; labels of the data are not read. At every evaluation (`eval_strategy`) `results.csv` gets a line:
the loss and its parts, the deviation of what is predicted and of the pooled outputs (0 if they have collapsed), and
with `probe_recipe`, a recipe of labelled clips, the accuracy of a linear classifier on frozen embeddings.
"""

import dataclasses
import logging
import sys
from pathlib import Path

from transformers import set_seed

from modeling_ast import ASTModel
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.processes import decided_by_main
from modeling_ast.inference.figures import may_fail
from modeling_ast.inference.result_plots import plot_pretraining_curves
from modeling_ast.training.dry_run import dry_run
from modeling_ast.training.faults import GOES_ON as GOES_ON  # read by `run_command`
from modeling_ast.training.output_dir import AVERAGE_FOLDER, checkpoint_to_go_on_from
from modeling_ast.training.pretraining import build_for_pretraining, make_pretrainer
from modeling_ast.training.pretraining_arguments import PretrainingRecipe, parse_pretraining_arguments
from modeling_ast.training.results import RESULTS_NAME
from modeling_ast.training.same_run import compare_models
from modeling_ast.training.stages import entered, read_arguments, read_data, train

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run a recipe.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        All metrics of the run, as saved in `all_results.json`.

    Raises:
        RecipeError, DataError, AudioError: Arguments, data set or a sound file that cannot be used.
        DivergedError: The training diverged.
        SaveError: A checkpoint or the model cannot be written.
        Stopped: By a signal, during training.
    """
    recipe = read_arguments(sys.argv[1:] if argv is None else argv, parse_pretraining_arguments)
    with entered(recipe):
        return run(recipe)


def run(recipe: PretrainingRecipe) -> dict[str, float]:
    """Run what the blocks of arguments say, as `parse_pretraining_arguments` gives them."""
    output_dir = Path(recipe.training.output_dir)
    set_seed(recipe.training.seed)
    splits = dataclasses.replace(read_data(recipe, needs_labels=False), validation=None, test=None)
    model, extractor = build_for_pretraining(recipe)
    compare_models(lambda: fingerprint_model(model, extractor, with_weights=False))
    trainer = make_pretrainer(recipe, splits, model, extractor)
    if recipe.training.dry_run:
        results = dry_run(trainer, {})
        if trainer.probe is not None:
            logger.info("The probe, for which all its clips are read each time, is not in the estimate.")
        return results

    if trainer.probe is not None and not decided_by_main(lambda: checkpoint_to_go_on_from(recipe.training)):
        # A clip of it that cannot be decoded is found before the hours, and not behind them.
        found = trainer.probe.measure(trainer.trained_model)
        logger.info("The probe before: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    results = train(trainer, recipe)
    if trainer.probe is not None:
        found = trainer.evaluate(metric_key_prefix="probe")
        if decided_by_main((output_dir / AVERAGE_FOLDER).is_dir):
            average = ASTModel.from_pretrained(output_dir / AVERAGE_FOLDER).to(trainer.args.device)
            of_average = trainer.probe.measure(average)
            found |= {f"average_probe_{name}": value for name, value in of_average.items()}
        trainer.log_metrics("probe", found)
        trainer.save_metrics("probe", found)
        results |= found
    if trainer.is_world_process_zero():
        table, picture = output_dir / RESULTS_NAME, output_dir / "training_curves.png"
        if table.is_file():  # not without evaluations during training
            with may_fail(picture):
                plot_pretraining_curves(table, picture)
        logger.info(f"Everything is in {output_dir}: give it to a recipe as model_name_or_path.")
    if recipe.training.push_to_hub:
        trainer.push_to_hub()
    return results


if __name__ == "__main__":
    run_command("pretrain")
