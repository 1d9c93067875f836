"""Upload a finished folder to the Hugging Face Hub.

    modeling-ast push outputs/demo ME/ast-demo [--private] [--with_code] [--with_handler] [--dry_run]

What goes up: the weights, the configuration with its labels, the feature extractor, the model card, the recipe,
results and pictures. What stays: checkpoints, optimiser states, predictions, and the average of the weights in its own
folder, which can be given here by itself. With `--with_code` the package's code goes along, for machines without it,
where `trust_remote_code=True` then loads it. With `--with_handler` the repository can be deployed on Hugging Face
Inference Endpoints as it is, which then tags whole recordings: `handler.py`, the whole package, and a
`requirements.txt`. The folder itself is not changed.
"""

import argparse
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser
from modeling_ast.training.publishing import (
    add_handler,
    check_for_tokens,
    find_files,
    finish_card,
    gather,
    load_folder,
)


def main(argv: list[str] | None = None) -> None:
    """Check, gather and upload a folder.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Raises:
        ModelError, DataError: Not the folder of a finished model, or something in it that must not go up.
        CommandError: Not logged in, or refused by the Hub.
    """
    args = parse_command_line(argv)
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
            options = {"revision": args.revision, "commit_message": args.commit_message}
            print(f"Uploaded to {upload(staged, args.repo_id, args.private, **options)}")


def parse_command_line(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
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
    check_hub(args.repo_id, needs_token=not args.dry_run)
    return args


def check_hub(repo_id: str, needs_token: bool = True) -> None:
    """
    Raises:
        CommandError: The Hub has no such names, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise CommandError(f"Expected NAME/MODEL as repo_id: {' '.join(str(error).split())}") from error
    if needs_token and get_token() is None:
        raise CommandError("Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write.")


def upload(
    folder: Path,
    repo_id: str,
    private: bool,
    revision: str | None = None,
    commit_message: str | None = None,
    repo_type: str | None = None,
    **patterns: list[str],
) -> str:
    """Make the repository and its branch if need be, and upload the folder; what is there already is not sent again.

    Args:
        folder: What is uploaded.
        repo_id: Where to.
        private: Whether others must not see it.
        revision: Branch; `None` means main.
        commit_message: `None` names the folder.
        repo_type: "dataset"; `None` means a model.
        patterns: Which files, as `HfApi.upload_folder` has them.

    Returns:
        The address.

    Raises:
        CommandError: The Hub does not take it, or would show it to all.
    """
    api, kind = HfApi(), {"repo_type": repo_type} if repo_type else {}
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True, **kind)
        if private and not api.repo_info(url.repo_id, **kind).private:
            raise CommandError(f"{url.repo_id} is there already and public: make it private in its settings first.")
        if revision:
            api.create_branch(url.repo_id, branch=revision, exist_ok=True, **kind)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Upload {folder.resolve().name}",
            **kind,
            **patterns,
        )
    except CommandError:
        raise
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reasons = {401: "it does not know your token; run `hf auth login`.", 403: "your token may not write there."}
        reason = reasons.get(status, " ".join(str(error).split()))
        raise CommandError(f"The Hub refused {repo_id}: {reason}") from error
    except (HTTPError, OSError, ValueError) as error:  # no connection; metadata that the Hub does not accept
        raise CommandError(f"Nothing was uploaded to {repo_id}: {' '.join(str(error).split())}") from error
    return str(url)


if __name__ == "__main__":
    run_command("push")
