"""What goes up to the Hub with a finished model: gathered in a folder of its own, and looked at before it goes."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

import modeling_ast
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.labels import DataError
from modeling_ast.data.loss_weights import WEIGHTS_NAME
from modeling_ast.data.model_card import CARD_NAME, read_run, write_model_card
from modeling_ast.data.recipes import RECIPE_NAME
from modeling_ast.loading import ModelError, as_model_error, load_model

# What is copied, besides the model and the feature extractor, which are saved anew.
SHARED_FILES = (CARD_NAME, RECIPE_NAME, "LICENSE*", "*_results.json", "results.csv", "per_class_*.csv", WEIGHTS_NAME)
SHARED_FILES += ("*.png",)

CODE_NOTE = """
## Code

The code of modeling_ast (Apache 2.0) lies beside the weights. With `trust_remote_code=True` Transformers loads it
instead of its own AST, on a machine that has no modeling_ast. It then also adapts the trained positions to another
`max_length`, number of mel bins or stride.
"""


def load_folder(folder: Path) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """The model and the feature extractor of a folder, which must be whole.

    Raises:
        ModelError: Not a folder, not an AST, or something is missing.
    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is not the folder of a finished model: it has no {name}.")
    with as_model_error(folder):
        settings = ASTConfig.get_config_dict(folder)[0]
    kind = settings.get("model_type")
    if kind != ASTConfig.model_type:
        raise ModelError(f"Expected an Audio Spectrogram Transformer in {folder}, got {kind}.")
    if settings.get("architectures") == ["ASTModel"]:
        raise ModelError(
            f"{folder} is a model without a classifier, as pre-training makes it, of which no card can be written: "
            "`push_to_hub: true` in its recipe, or `hf upload NAME FOLDER`, uploads it as it is."
        )
    model, extractor = load_model(folder)
    if extractor.max_length != model.config.max_length:
        raise ModelError(
            f"Expected one max_length in {folder}, got {model.config.max_length} in config.json and "
            f"{extractor.max_length} in preprocessor_config.json."
        )
    return model, extractor


def gather(
    folder: Path, staged: Path, model: ASTForAudioClassification, extractor: ASTFeatureExtractor, with_code: bool
) -> None:
    """Everything to upload, in a new folder; a model card is written where there is none.

    Raises:
        RecipeError, DataError: A recipe or results of the run that cannot be read.
    """
    for saved in (model.config, extractor):
        vars(saved).pop("auto_map", None)  # of code that came with the weights it started from, and is not here
    with _code_travels_along(type(extractor)) if with_code else nullcontext():
        model.save_pretrained(staged)
        extractor.save_pretrained(staged)
    for path in folder.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in SHARED_FILES):
            shutil.copyfile(path, staged / path.name)
    if not (staged / CARD_NAME).is_file():
        write_model_card(staged, model, extractor, **read_run(folder))


def add_handler(staged: Path) -> None:
    """What an Inference Endpoint needs: the handler, the package that it imports, and what that needs.

    Raises:
        ImportError: The package is not installed, so that nobody knows what it needs.
    """
    try:
        needed = [line for line in requires("modeling_ast") if "extra ==" not in line]
    except PackageNotFoundError as error:
        raise ImportError(
            "--with_handler writes the requirements of the installed package, which modeling_ast is not: "
            "pip install -e '.[train]'"
        ) from error
    package = Path(modeling_ast.__file__).parent
    shutil.copytree(package, staged / package.name, ignore=shutil.ignore_patterns("__pycache__", "py.typed"))
    shutil.copyfile(package / "inference" / "handler.py", staged / "handler.py")
    (staged / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")


def find_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def finish_card(staged: Path, repo_id: str, license_id: str | None, with_code: bool) -> None:
    """Let the card's example load the model from the Hub, and say its licence and that code lies beside it.

    Raises:
        DataError: Metadata that cannot be read.
    """
    try:
        card = ModelCard.load(staged / CARD_NAME)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"The metadata of {CARD_NAME} cannot be read: {' '.join(str(error).split())}") from error
    card.text = card.text.replace(f'model="{staged.name}"', f'model="{repo_id}"')
    if license_id:
        card.data.license = license_id
    if with_code and CODE_NOTE not in card.text:
        card.text = card.text.rstrip("\n") + "\n" + CODE_NOTE
    card.save(staged / CARD_NAME)


def check_for_tokens(staged: Path) -> None:
    """Refuse text files that hold an access token: what was once public is to be revoked.

    Raises:
        DataError: Some do.
    """
    texts = (path for path in find_files(staged) if path.suffix not in (".safetensors", ".png"))
    if found := [path.name for path in texts if re.search(rb"\bhf_[A-Za-z0-9]{30,}", path.read_bytes())]:
        raise DataError(f"What looks like an access token stands in {', '.join(found)}: take it out first.")


@contextmanager
def _code_travels_along(extractor_class: type[ASTFeatureExtractor]) -> Iterator[None]:
    """Within it, `save_pretrained` adds the modules of our classes, and their names as `auto_map`."""
    classes = {
        ASTConfig: "AutoConfig",
        extractor_class: "AutoFeatureExtractor",
        ASTForAudioClassification: "AutoModelForAudioClassification",
    }
    for class_, auto_class in classes.items():
        class_.register_for_auto_class(auto_class)
    try:
        yield
    finally:
        for class_ in classes:
            class_._auto_class = None
