"""Teachers over the views of a recipe: what they say of each goes into files, which a student is trained on."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.trainer_utils import IntervalStrategy

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.labels import DataError
from modeling_ast.data.parts import Part
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.arguments import Arguments, parse_arguments
from modeling_ast.training.sampling import TrainingSampler
from modeling_ast.training.targets import MAX_LABELS, TargetFile, TargetsFolder, best, describe_views
from modeling_ast.training.teachers import Teachers, ViewCollator
from modeling_ast.training.trainer import ASTTrainer


def read_teaching_arguments(recipe: str, keys: Sequence[str], output: Path) -> Arguments:
    """The recipe of the student, as its training reads it.

    Raises:
        RecipeError: A recipe or keys that cannot be used, a dry run, or clips that come as a stream.
    """
    own = ["--do_train=true", f"--output_dir={output}", f"--teacher_targets={output}"]  # which some keys ask for
    arguments = parse_arguments([recipe, *keys, *own])
    training_args = arguments.training
    if training_args.dry_run:
        raise RecipeError("dry_run has no effect on teach: leave it out.")
    training_args.teacher_targets, training_args.features_on_device = None, False  # teachers take both kinds
    training_args.eval_strategy, training_args.report_to, training_args.push_to_hub = IntervalStrategy.NO, [], False
    return arguments


def describe_targets(trainer: ASTTrainer, arguments: Arguments, teachers: Teachers, top_k: int, epochs: int) -> dict:
    """What `TargetsFolder` is described by.

    Args:
        trainer: Of the student.
        arguments: Of its recipe.
        teachers: Of these targets.
        top_k: How many probabilities are kept of each view.
        epochs: How many are taught.

    Raises:
        DataError: More labels than their numbers can tell.
    """
    if teachers.label_names is not None and len(teachers.label_names) > MAX_LABELS:
        raise DataError(f"Expected at most {MAX_LABELS:,} labels, got {len(teachers.label_names):,}.")
    lower = next((name for name in ("bf16", "fp16") if getattr(trainer.args, name)), None)  # which says other numbers
    return {
        "views": views_of(trainer, arguments),
        "label_names": teachers.label_names,
        **({} if teachers.label_names is None else {"problem_type": arguments.model.problem_type}),
        "teachers": teachers.describe(),
        **({} if lower is None else {"precision": lower}),
        "top_k": None if teachers.label_names is None else min(top_k, len(teachers.label_names)),
        "epochs": epochs,
    }


def views_of(trainer: ASTTrainer, arguments: Arguments) -> dict:
    """`describe_views` of a student's training."""
    extractor: ASTFeatureExtractor = trainer.processing_class
    draws, update = len(trainer.make_sampler()), trainer.global_batch_size
    return describe_views(arguments, extractor, trainer.train_dataset.rows, draws, update)


def teach(trainer: ASTTrainer, teachers: Teachers, targets: TargetsFolder, epochs: int, part: Part) -> tuple[int, int]:
    """Let teachers say what they find in each view of so many epochs, where that is not done, and write it.

    Args:
        trainer: Of the student, whose views these are.
        teachers: Loaded.
        targets: Begun.
        epochs: From the first one.
        part: Of the files, which are dealt to the parts in turn.

    Returns:
        How many files of this part were written now, and how many of all parts and epochs are missing.
    """
    own = targets.files(epochs)[part.number - 1 :: part.count]
    pending = [file for file in own if not file.path.is_file()]
    args, sampler = trainer.args, trainer.make_sampler()
    loader = DataLoader(
        trainer.train_dataset,
        # The batches of a student on as many devices: what a clip's features round to may depend on its batch.
        batch_sampler=_Batches(sampler, pending, args.train_batch_size),
        collate_fn=ViewCollator(trainer.train_collator, teachers.take_waveforms),
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    views = iter(loader)
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    precision = torch.autocast(args.device.type, dtype, enabled=args.bf16 or args.fp16)
    done = sum(file.count for file in own) - sum(file.count for file in pending)
    total = sum(file.count for file in own)
    with (
        torch.inference_mode(),
        tqdm(desc="Teaching", unit="view", total=total, initial=done, disable=args.disable_tqdm) as progress,
    ):
        for file in pending:
            rows = []
            for view in islice(views, -(-file.count // args.train_batch_size)):
                with precision:
                    said = teachers(view)
                rows.append(_to_rows(said, targets))
                progress.update(len(said))
            targets.write(file, np.concatenate(rows))
    return len(pending), sum(not file.path.is_file() for file in targets.files())


class _Batches:
    """Pairs of a sampler for the positions of some files."""

    def __init__(self, sampler: TrainingSampler, files: Sequence[TargetFile], batch_size: int):
        self.sampler, self.files, self.batch_size = sampler, files, batch_size

    def __len__(self) -> int:
        return sum(-(-file.count // self.batch_size) for file in self.files)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for file in self.files:
            self.sampler.set_epoch(file.epoch)
            pairs = islice(iter(self.sampler), file.offset, file.offset + file.count)
            while batch := list(islice(pairs, self.batch_size)):
                yield batch


def _to_rows(said: torch.Tensor, targets: TargetsFolder) -> np.ndarray:
    """
    Raises:
        DataError: Embeddings that float16 cannot hold.
    """
    if not targets.gives_embeddings:
        return best(said, targets.description["top_k"])
    rows = said.half().cpu().numpy()
    if not np.isfinite(rows).all():
        raise DataError("Expected embeddings within the range of float16, 65,504. Let the function divide them.")
    return rows
