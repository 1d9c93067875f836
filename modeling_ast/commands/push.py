"""Upload a finished folder to the Hugging Face Hub.

    modeling-ast push outputs/demo ME/ast-demo [--private] [--with_code] [--with_handler] [--dry_run]

What goes up: the weights, the configuration with its labels, the feature extractor, the model card, the recipe,
results and pictures. What stays: checkpoints, optimiser states, predictions, and the average of the weights in its own
folder, which can be given here by itself. With `--with_code` the package's code goes along, for machines without it,
where `trust_remote_code=True` then loads it. With `--with_handler` the repository can be deployed on Hugging Face
Inference Endpoints as it is, which then hears whole recordings: `handler.py`, the whole package, and a
`requirements.txt`. The folder itself is not changed.
"""

import argparse
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoModelForAudioClassification

import modeling_ast
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.recipes import RECIPE_NAME
from modeling_ast.training.model_card import CARD_NAME, read_run, write_model_card

# What is copied, besides the model and the feature extractor, which are saved anew.
SHARED_FILES = (CARD_NAME, RECIPE_NAME, "LICENSE*", "*_results.json", "results.csv", "per_class_*.csv", "*.png")

CODE_NOTE = """
## Code

The code of modeling_ast (Apache 2.0) lies beside the weights. With `trust_remote_code=True` Transformers loads it
instead of its own AST, on a machine that has no modeling_ast. It then also adapts the trained positions to another
`max_length`, number of mel bins or stride.
"""


class UploadError(ValueError):
    """A folder that cannot be uploaded, or a Hub that does not take it. One sentence that says why."""


def main(argv: list[str] | None = None) -> None:
    """Check, gather and upload a folder.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Raises:
        UploadError: Not a finished folder, not logged in, or refused by the Hub.
    """
    args = parse_command_line(argv)
    if not args.dry_run and get_token() is None:
        raise UploadError("Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write.")
    model, extractor = load_folder(args.folder)
    with tempfile.TemporaryDirectory() as root:
        staged = Path(root) / args.folder.resolve().name  # the card takes the model's name from its folder
        gather(args.folder, staged, model, extractor, args.with_code)
        if args.with_handler:
            add_handler(staged)
        finish_card(staged, args.repo_id, args.license, args.with_code)
        check_for_tokens(staged)
        sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in find_files(staged)}
        for name, size in sizes.items():
            print(f"{size:>13,} {name}")
        print(f"{sum(sizes.values()):>13,} bytes in {len(sizes)} files for {args.repo_id}")
        if args.dry_run:
            print("Nothing was uploaded.")
        else:
            print(f"Uploaded to {upload(staged, args)}")


def parse_command_line(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="of a trained, averaged or converted model")
    parser.add_argument("repo_id", help="where it goes: NAME/MODEL; made if it is not there")
    parser.add_argument("--private", action="store_true", help="for you, or your organisation, alone")
    parser.add_argument("--with_code", action="store_true", help="add the code, for trust_remote_code=True")
    parser.add_argument("--with_handler", action="store_true", help="add what Inference Endpoints need to run it")
    parser.add_argument("--license", help="licence of the weights for the model card, such as apache-2.0")
    parser.add_argument("--revision", help="branch; made if it is not there; default: main")
    parser.add_argument("--commit_message", help="default: Upload and the folder's name")
    parser.add_argument("--dry_run", action="store_true", help="check and list everything, upload nothing")
    args = parser.parse_args(argv)
    try:
        validate_repo_id(args.repo_id)
    except ValueError as error:
        raise UploadError(f"Expected NAME/MODEL as repo_id: {' '.join(str(error).split())}") from error
    return args


def load_folder(folder: Path) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """The model and the feature extractor of a folder, which must be whole.

    Raises:
        UploadError: Not a folder, not an AST, or something is missing.
    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise UploadError(f"{folder} is not the folder of a finished model: it has no {name}.")
    try:
        model, loading = AutoModelForAudioClassification.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False
        )
        extractor = ASTFeatureExtractor.from_pretrained(folder)
    except (ValueError, OSError, RuntimeError, TypeError, SafetensorError) as error:
        raise UploadError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    if not isinstance(model, ASTForAudioClassification):
        raise UploadError(f"Expected an Audio Spectrogram Transformer in {folder}, got {model.config.model_type}.")
    if missing := sorted(loading["missing_keys"]):
        raise UploadError(f"{folder} is not whole: its weights lack {len(missing)} tensors, such as {missing[0]}.")
    for key in ("max_length", "num_mel_bins"):
        if getattr(extractor, key) != getattr(model.config, key):
            raise UploadError(
                f"Expected one {key} in {folder}, got {getattr(model.config, key)} in config.json and "
                f"{getattr(extractor, key)} in preprocessor_config.json."
            )
    return model, extractor


def gather(
    folder: Path, staged: Path, model: ASTForAudioClassification, extractor: ASTFeatureExtractor, with_code: bool
) -> None:
    """Everything to upload, in a new folder; a model card is written where there is none."""
    for saved in (model.config, extractor):
        vars(saved).pop("auto_map", None)  # of code that came with the weights it started from, and is not here
    with _code_travels_along() if with_code else nullcontext():
        model.save_pretrained(staged)
        extractor.save_pretrained(staged)
    for path in folder.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in SHARED_FILES):
            shutil.copyfile(path, staged / path.name)
    if not (staged / CARD_NAME).is_file():
        try:
            write_model_card(staged, model, extractor, **read_run(folder))
        except ValueError as error:
            raise UploadError(str(error)) from error


def add_handler(staged: Path) -> None:
    """What an Inference Endpoint needs: the handler, the package that it imports, and what that needs.

    Raises:
        UploadError: The package is not installed, so that nobody knows what it needs.
    """
    try:
        needed = [line for line in requires("modeling_ast") if "extra ==" not in line]
    except PackageNotFoundError as error:
        raise UploadError(
            "--with_handler writes the requirements of the installed package, which modeling_ast is not: "
            "pip install -e ."
        ) from error
    package = Path(modeling_ast.__file__).parent
    shutil.copytree(package, staged / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(package / "inference" / "handler.py", staged / "handler.py")
    (staged / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")


def find_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def finish_card(staged: Path, repo_id: str, license_id: str | None, with_code: bool) -> None:
    """Let the card's example load the model from the Hub, and say its licence and that code lies beside it.

    Raises:
        UploadError: Metadata that cannot be read.
    """
    try:
        card = ModelCard.load(staged / CARD_NAME)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UploadError(f"The metadata of {CARD_NAME} cannot be read: {' '.join(str(error).split())}") from error
    card.text = card.text.replace(f'model="{staged.name}"', f'model="{repo_id}"')
    if license_id:
        card.data.license = license_id
    if with_code and CODE_NOTE not in card.text:
        card.text = card.text.rstrip("\n") + "\n" + CODE_NOTE
    card.save(staged / CARD_NAME)


def check_for_tokens(staged: Path) -> None:
    """Refuse text files that hold an access token: what was once public is to be revoked."""
    texts = (path for path in find_files(staged) if path.suffix not in (".safetensors", ".png"))
    if found := [path.name for path in texts if re.search(rb"\bhf_[A-Za-z0-9]{30,}", path.read_bytes())]:
        raise UploadError(f"What looks like an access token stands in {', '.join(found)}: take it out first.")


def upload(staged: Path, args: argparse.Namespace) -> str:
    """Make the repository and its branch if need be, and upload the folder in one commit.

    Returns:
        The address.
    """
    api = HfApi()
    try:
        url = api.create_repo(args.repo_id, private=args.private or None, exist_ok=True)
        if args.private and not api.repo_info(url.repo_id).private:
            raise UploadError(f"{url.repo_id} is there already and public: make it private in its settings first.")
        if args.revision:
            api.create_branch(url.repo_id, branch=args.revision, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=staged,
            revision=args.revision,
            commit_message=args.commit_message or f"Upload {staged.name}",
        )
    except UploadError:
        raise
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reasons = {401: "it does not know your token; run `hf auth login`.", 403: "your token may not write there."}
        reason = reasons.get(status, " ".join(str(error).split()))
        raise UploadError(f"The Hub refused {args.repo_id}: {reason}") from error
    except (HTTPError, OSError, ValueError) as error:  # no connection; metadata that the Hub does not accept
        raise UploadError(f"Nothing was uploaded to {args.repo_id}: {' '.join(str(error).split())}") from error
    return str(url)


@contextmanager
def _code_travels_along() -> Iterator[None]:
    """Within it, `save_pretrained` adds the modules of our classes, and their names as `auto_map`."""
    classes = {
        ASTConfig: "AutoConfig",
        ASTFeatureExtractor: "AutoFeatureExtractor",
        ASTForAudioClassification: "AutoModelForAudioClassification",
    }
    for class_, auto_class in classes.items():
        class_.register_for_auto_class(auto_class)
    try:
        yield
    finally:
        for class_ in classes:
            class_._auto_class = None


if __name__ == "__main__":
    run_command("push")
