"""A recipe is a saved command line: both are cast by one parser, which refuses what it does not know."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState

from modeling_ast.data.recipes import DataArguments, RecipeError, parse_data_arguments, read_recipe
from modeling_ast.training.arguments import (
    Arguments,
    ASTTrainingArguments,
    AugmentArguments,
    parse_arguments,
)
from modeling_ast.training.pretraining_arguments import (
    PretrainingArguments,
    PretrainingRecipe,
    parse_pretraining_arguments,
)
from modeling_ast.training.saved_recipes import save_recipe

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
NEEDED = "dataset_name: synthetic\noutput_dir: somewhere\n"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe; what every run needs is there already."""

    def write(text: str, needed: str = NEEDED) -> str:
        (tmp_path / "some.yaml").write_text(needed + text, encoding="utf-8")
        return str(tmp_path / "some.yaml")

    return write


def parse_any(*argv) -> Arguments | PretrainingRecipe:
    """The blocks of a recipe, which says by its name what it is for."""
    pretrains = argv and Path(argv[0]).name.startswith("pretrain")
    return (parse_pretraining_arguments if pretrains else parse_arguments)([*map(str, argv)])


def parse(*argv) -> dict:
    """The values of all blocks; names are unique among them."""
    return {name: value for block in parse_any(*argv) for name, value in vars(block).items()}


def as_dicts(arguments: Arguments) -> list[dict]:
    return [
        {field.name: getattr(block, field.name) for field in dataclasses.fields(block) if field.init}
        for block in arguments
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses(path):
    values = parse(path)
    assert values["do_train"] is True and values["dataset_name"]
    assert values["output_dir"].startswith("outputs/")  # which git ignores


def test_names_are_unique_among_the_blocks():
    blocks = parse_pretraining_arguments(["--dataset_name=synthetic", "--output_dir=somewhere", "--do_train=true"])
    names = [field.name for block in blocks for field in dataclasses.fields(block)]
    assert len(names) == len(set(names))


def test_command_line_wins_over_the_recipe(recipe):
    path = recipe("learning_rate: 1e-3\nseed: 3\ndo_train: true\n")
    values = parse(path, "--learning_rate", "5e-4", "--do_train=false", "--output_dir", "elsewhere")
    assert (values["learning_rate"], values["seed"]) == (5e-4, 3)
    assert (values["do_train"], values["output_dir"]) == (False, "elsewhere")


def test_a_recipe_is_not_needed():
    assert parse("--dataset_name", "synthetic", "--output_dir", "somewhere", "--seed", 5)["seed"] == 5


@pytest.mark.parametrize(
    "line, name, value",
    [
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning_rate: 0.001  # a comment", "learning_rate", 0.001),
        ("mean: -7.33", "mean", -7.33),
        ("mean: -1e1", "mean", -10.0),
        ("max_length: 96", "max_length", 96),
        ("padding: longest", "padding", "longest"),
        ("warmup_steps: 0.1", "warmup_steps", 0.1),
        ("do_train: yes", "do_train", True),
        ("do_train: true", "do_train", True),
        ("do_train: no", "do_train", False),
        ("do_train: false", "do_train", False),
        ("linear_baseline: off", "linear_baseline", ValueError),
        ("linear_baseline: no", "linear_baseline", False),
        ("label_column_name: no", "label_column_name", "no"),
        ("label_column_name: false", "label_column_name", "false"),
        ("label_column_name: 2024-01-01", "label_column_name", "2024-01-01"),
        ("label_column_name: 010", "label_column_name", "010"),
        ("label_separator: ';'", "label_separator", ";"),
        ("label_separator: '-'", "label_separator", "-"),
        ("label_separator: ' '", "label_separator", " "),
        ("audio_dir: -takes/a b", "audio_dir", "-takes/a b"),
        ("eval_fold: 5", "eval_fold", "5"),
        ("report_to: [none]", "report_to", []),
        ("label_names: [labels, others]", "label_names", ["labels", "others"]),
        ("label_names:\n- labels\n- others", "label_names", ["labels", "others"]),
        ("lr_scheduler_kwargs: '{\"num_cycles\": 2}'", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
        ("resume_from_checkpoint: false", "resume_from_checkpoint", None),
        ("resume_from_checkpoint: some/checkpoint-3", "resume_from_checkpoint", "some/checkpoint-3"),
    ],
)
def test_values_are_cast_by_their_field(recipe, line, name, value):
    path = recipe(line + "\n")
    if value is ValueError:
        with pytest.raises(RecipeError, match=name):
            parse(path)
    else:
        found = parse(path)[name]
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("name, value", [("mean", -7.5), ("mean", -1e-3), ("max_steps", -1)])
def test_negative_numbers_are_no_keys(name, value):
    argv = ["--dataset_name=synthetic", "--output_dir=somewhere"]
    assert parse(*argv, f"--{name}", value)[name] == value
    assert parse(*argv, f"--{name}={value}")[name] == value


@pytest.mark.parametrize("switch", ["linear_baseline", "overwrite_output_dir", "do_train"])
def test_switches_can_do_without_a_value(switch):
    assert parse("--dataset_name=synthetic", "--output_dir=somewhere", f"--{switch}")[switch] is True


# The batch of all devices


def test_saved_recipe_keeps_the_global_batch_and_can_be_divided_anew(tmp_path):
    argv = [
        "--dataset_name=synthetic",
        f"--output_dir={tmp_path}",
        "--use_cpu",
        "--do_train",
        "--global_batch_size=48",
    ]
    save_recipe(parse_arguments(argv), tmp_path / "saved.yaml")
    assert parse(tmp_path / "saved.yaml")["per_device_train_batch_size"] == 48
    assert parse(tmp_path / "saved.yaml", "--gradient_accumulation_steps=6")["per_device_train_batch_size"] == 8


# What is refused


@pytest.mark.parametrize(
    "text, words",
    [
        ("learning_rates: 1e-3\n", "Unknown: --learning_rates=1e-3. .*Did you mean learning_rate[?]"),
        ("num_train_epoch: 3\n", "Unknown: --num_train_epoch=3"),
        ("evaluation_strategy: epoch\n", "Unknown: --evaluation_strategy=epoch"),
        ("seed: 1\nmean: 0\nseed: 2\n", r"some.yaml, line 5: seed is there twice"),
        ("seed: many\n", "seed.*many"),
        ("max_length: 1.5\n", "max_length.*1.5"),
        ("do_train: perhaps\n", "perhaps"),
        ("problem_type: regression\n", "problem_type.*regression"),
        ("padding: circular\n", "padding.*circular.*max_length.*longest"),
        ("padding: true\n", "padding.*true"),
        ("eval_strategy: sometimes\n", "sometimes"),
        ("optim: magic\n", "magic"),
        ("freq_mask_bins: -1\n", r"Expected freq_mask_bins in \[0, inf\), got -1"),
        ("mixup_probability: 2\n", r"Expected mixup_probability in \[0, 1\], got 2.0"),
        ("mixup_alpha: 0\n", r"Expected mixup_alpha in \(0, 1000\], got 0"),
        ("max_noise: -0.1\n", r"Expected max_noise in \[0, inf\), got -0.1"),
        ("original_noise_and_roll: true\n", "original_noise_and_roll has no effect without max_noise or roll_frames"),
        ("mixup_partner: neighbour\n", "mixup_partner.*neighbour.*dataset.*batch"),
        (
            "mixup_partner: batch\nmixup_probability: 1\ndo_train: true\nper_device_train_batch_size: 3\n",
            "Expected an even number of clips on each device at a time with mixup_partner batch, got 3",
        ),
        (
            "mixup_partner: batch\nmixup_probability: 1\ndo_train: true\nauto_find_batch_size: true\n",
            "mixup_partner batch needs clips two by two, which auto_find_batch_size may part",
        ),
        (
            "global_batch_size: 10\ngradient_accumulation_steps: 4\ndo_train: true\n",
            r"global_batch_size 10 cannot be divided by \d+ device\(s\) x 4 step\(s\) of accumulation. Choose",
        ),
        ("train_sampling_strategy: sequential\n", "train_sampling_strategy must stay random: class_balanced_sampling"),
        ("do_predict: true\n", "do_predict must stay false"),
        ("remove_unused_columns: true\n", "remove_unused_columns must stay false"),
        ("model:\n  max_length: 3\n", "some.yaml, line 3: expected a value, or a list of values, for model"),
        ("label_names: [[a], b]\n", "line 3: expected a value, or a list of values, for label_names"),
        ("lr_scheduler_kwargs: {num_cycles: 2}\n", "line 3: expected a value, or a list.*lr_scheduler_kwargs"),
        ("mean:\n", "line 3: expected a value, or a list of values, for mean"),
        ("mean: ''\n", "line 3: expected a value, or a list of values, for mean"),
        ("mean: [\n", "some.yaml: not YAML"),
        ("mean: 1: 2\n", "some.yaml: not YAML"),
        ("\tmean: 1\n", "some.yaml: not YAML"),
        ("---\nmean: 1\n", "some.yaml: not YAML"),
        ("load_best_model_at_end: true\neval_strategy: epoch\nsave_strategy: steps\n", "[Ss]ave.*[Ee]val"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(recipe, text, words):
    with pytest.raises(RecipeError, match=words):
        parse(recipe(text))


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "- a\n- list\n", "words\n"])
def test_what_is_not_flat_is_refused(recipe, text):
    with pytest.raises(RecipeError, match="some.yaml: expected lines of the form"):
        parse(recipe(text, needed=""))


@pytest.mark.parametrize("name", ["nope.yaml", "."])
def test_recipe_that_cannot_be_read_is_refused_with_its_path(tmp_path, name):
    with pytest.raises(RecipeError, match=r"cannot be read \((No such file|Is a directory)") as error:
        parse(tmp_path / name)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("content", [b"mean: \xff\n", b"\x00\x01\x02", b"RIFF\x24\x00\x00\x00WAVE"])
def test_file_that_is_no_text_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "some.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match="some.yaml"):
        parse(tmp_path / "some.yaml")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--num_train_epoch", "3"], "Unknown: --num_train_epoch 3"),
        (["--num_train_epoch=3"], "Unknown: --num_train_epoch=3"),
        (["--nonsense"], "Unknown: --nonsense"),
        (["second.yaml"], "Unknown: second.yaml"),
        (["--learning_rate"], "learning_rate.*expected"),
        (["--learning_rate", "fast"], "learning_rate.*fast"),
    ],
)
def test_command_line_is_refused_in_the_same_way(recipe, argv, words):
    with pytest.raises(RecipeError, match=words):
        parse(recipe(""), *argv)


def test_features_are_left_to_data_workers_where_batches_become_others_on_their_way(recipe):
    argv = ["--accelerator_config", '{"dispatch_batches": true}']
    with pytest.raises(RecipeError, match="features_on_device does not go together with DeepSpeed and dispatch_batch"):
        parse(recipe("features_on_device: true\n"), *argv)
    parse(recipe("features_on_device: false\n"), *argv)
    with pytest.raises(RecipeError, match="dispatch_batches puts batches together, which have other lengths"):
        parse(recipe("padding: longest\n"), *argv)


@pytest.mark.parametrize("missing", ["dataset_name", "output_dir"])
def test_what_every_run_needs_is_asked_for(missing):
    given = {"dataset_name": "synthetic", "output_dir": "somewhere"}
    del given[missing]
    if missing == "dataset_name":
        with pytest.raises(RecipeError, match="required.*dataset_name"):
            parse(*(f"--{name}={value}" for name, value in given.items()))
    else:  # Transformers has a default
        assert parse(*(f"--{name}={value}" for name, value in given.items()))["output_dir"] == "trainer_output"


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    assert "--roll_frames" in capsys.readouterr().out


# Commands that do not train


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_of_training_names_model_and_data_for_other_commands_too(path):
    model_args, data_args, batch_args = parse_data_arguments(path, [], "a test")
    in_training = parse(path)
    for block in (model_args, data_args):
        assert vars(block).items() <= in_training.items()
    assert batch_args.dataloader_num_workers == in_training["dataloader_num_workers"]


def test_lists_of_training_are_passed_over_and_the_command_line_wins(recipe):
    path = recipe("report_to: [none, other]\nlabel_names:\n- a\n- b\nlabel_column_name: kind\nmean: 1\n")
    _, data_args, batch_args = parse_data_arguments(
        path, ["--label_column_name", "class", "--dataloader_num_workers=2"], "a test", {"dataloader_num_workers"}
    )
    assert (data_args.dataset_name, data_args.label_column_name) == ("synthetic", "class")
    assert (batch_args.dataloader_num_workers, batch_args.per_device_eval_batch_size) == (2, 8)
    assert parse_data_arguments(None, ["--dataset_name=synthetic"], "a test")[1] == DataArguments("synthetic")


@pytest.mark.parametrize(
    "text, keys, words",
    [
        ("label_colum_name: kind\n", [], "some.yaml: unknown key label_colum_name. Did you mean label_column_name"),
        ("model_name_or_paths: x\n", [], "unknown key model_name_or_paths. Did you mean model_name_or_path"),
        ("", ["--label_colum_name=kind"], "No effect on a test: label_colum_name"),
        (
            "",
            ["--learning_rate", "1", "--mean=-1"],
            "No effect on a test: learning_rate, mean. Models bring",
        ),
        ("", ["--max_bad_clips=1"], "No effect on a test: max_bad_clips"),
        ("", ["--eval_fold=1"], "No effect on a test: eval_fold"),
        ("", ["second.yaml"], "Unknown: second.yaml"),
        ("max_eval_samples: many\n", [], "max_eval_samples.*many"),
        ("max_eval_samples: 0\n", [], r"Expected max_eval_samples in \[1, inf\)"),
        ("per_device_eval_batch_size: 0\n", [], r"Expected per_device_eval_batch_size in \[1, inf\), got 0"),
    ],
)
def test_what_has_no_effect_or_is_misspelt_is_refused(recipe, text, keys, words):
    with pytest.raises(RecipeError, match=words):
        parse_data_arguments(recipe(text), keys, "a test", without={"eval_fold"})


def test_no_key_of_training_looks_like_a_misspelt_key_of_model_or_data(recipe):
    for block in (AugmentArguments, ASTTrainingArguments, PretrainingArguments):
        for field in dataclasses.fields(block):
            parse_data_arguments(recipe(f"{field.name}: 1\n", needed="dataset_name: synthetic\n"), [], "a test")


def test_a_misspelt_key_is_told_before_anything_heavy_is_imported():
    code = (
        "import sys; from modeling_ast.data import recipes; print('torch' in sys.modules, 'datasets' in sys.modules)"
    )
    command = [sys.executable, "-c", f"import sys; sys.argv = ['modeling-ast']; {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False False\n"


# Saving


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_saved_recipe_gives_the_same_arguments(path, tmp_path):
    arguments, saved = parse_any(path), tmp_path / path.name
    save_recipe(arguments, saved)
    assert as_dicts(parse_any(saved)) == as_dicts(arguments)


@pytest.mark.parametrize(
    "argv",
    [
        ["--mean", "-7.33", "--std", "1e-7", "--learning_rate", "1.5e-5", "--weight_decay", "0"],
        ["--problem_type", "multi_label_classification", "--label_separator", ";"],
        ["--label_separator", " "],
        ["--label_separator", "|"],
        ["--label_column_name", "no", "--audio_column_name", "null", "--audio_dir", "~"],
        ["--label_column_name", "ключ: 'значение' # \"x\"", "--dataset_config_name=-dash"],
        ["--dataset_name", "/a path/with: colon #1.csv", "--audio_dir", "../audio", "--eval_fold", "3"],
        ["--freq_mask_bins", "24", "--time_mask_frames", "96", "--roll_frames", "0", "--linear_baseline"],
        ["--lr_scheduler_type", "cosine_with_restarts", "--lr_scheduler_kwargs", '{"num_cycles": 2, "a": [1, 2]}'],
        ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-06, "b": null}'],
        ["--optim_args", "betas=(0.9,0.95)", "--optim", "adamw_torch", "--adam_beta2", "0.95"],
        ["--label_names", "labels", "others"],
        ["--eval_strategy", "steps", "--eval_steps", "10", "--logging_steps", "0.25", "--save_strategy", "no"],
        ["--activation_checkpointing", "--activation_checkpointing_kwargs", '{"use_reentrant": false}'],
        ["--accelerator_config", '{"dispatch_batches": false}'],
        ["--warmup_steps", "0.1", "--max_steps", "7", "--gradient_accumulation_steps", "2", "--use_cpu"],
        ["--do_train", "--do_eval", "--resume_from_checkpoint", "some/checkpoint-3", "--overwrite_output_dir"],
        [
            "--global_batch_size",
            "48",
            "--class_balanced_sampling",
            "--freeze_backbone",
            "--head_learning_rate_factor=10",
        ],
        ["--mixup_probability", "0.6", "--mixup_alpha", "0.8", "--max_noise", "0.1", "--original_noise_and_roll"],
        ["--gain_db=6", "--mixup_partner=batch", "--mixup_probability=0.9", "--per_device_train_batch_size=2"],
        ["--num_time_masks=2", "--time_mask_frames=20", "--num_freq_masks=3", "--freq_mask_bins=9"],
        ["--random_crop", "--decoupled_weight_decay", "false", "--adam_beta1", "0.95", "--weight_decay", "5e-7"],
        ["--lr_step_factor=0.85", "--lr_step_first_epochs=5", "--lr_step_epochs=2", "--lr_scheduler_type=constant"],
        ["--weight_average_start", "2", "--weight_average_end", "4", "--num_train_epochs", "5"],
        ["--ema_decay", "0.999"],
        ["--validation_file", "held out.csv", "--test_file", "test.json", "--label_file", "esc50"],
        ["--bf16", "false", "--disable_tqdm", "true", "--log_level", "error", "--report_to", "none"],
        ["--seed", "1", "--data_seed", "3", "--max_grad_norm", "0", "--save_total_limit", "1"],
        ["--dataloader_pin_memory", "false", "--dataloader_num_workers", "2", "--push_to_hub", "false"],
    ],
    ids=lambda argv: argv[0].strip("-"),
)
def test_saved_arguments_come_back_equal(argv, tmp_path):
    arguments = parse_arguments(["--dataset_name=synthetic", f"--output_dir={tmp_path}", *argv])
    save_recipe(arguments, tmp_path / "saved.yaml")
    assert as_dicts(parse_arguments([str(tmp_path / "saved.yaml")])) == as_dicts(arguments)


def test_saved_recipe_says_all_of_ours_and_of_transformers_what_is_not_default(tmp_path):
    save_recipe(parse_arguments(["--dataset_name=synthetic", "--output_dir=x", "--seed=3"]), tmp_path / "saved.yaml")
    keys = {argument.split("=")[0].removeprefix("--") for argument in read_recipe(tmp_path / "saved.yaml")}
    assert {"model_name_or_path", "validation_fraction", "roll_frames", "seed", "output_dir"} <= keys
    assert not keys & {"learning_rate", "weight_decay", "num_train_epochs"}


def test_saving_leaves_the_state_of_the_processes_alone(tmp_path):
    """`TrainingArguments` set up what the processes of a run share; making another one would set it up anew."""
    arguments = parse_arguments(["--dataset_name=synthetic", "--output_dir=x", "--use_cpu"])
    before = dict(PartialState._shared_state)
    assert before["_cpu"]
    save_recipe(arguments, tmp_path / "saved.yaml")
    assert PartialState._shared_state == before


def test_access_tokens_are_not_saved(tmp_path):
    arguments = parse_arguments(["--dataset_name=synthetic", "--output_dir=x", "--hub_token=secret"])
    save_recipe(arguments, tmp_path / "saved.yaml")
    assert "secret" not in (tmp_path / "saved.yaml").read_text()


def test_null_is_nothing(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: synthetic\noutput_dir: x\naudio_dir: null\nseed: 3\n")
    _, data, _, training = parse_arguments([str(path)])
    assert data.audio_dir is None and training.seed == 3
