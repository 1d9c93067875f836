"""The script that averages saved models."""

from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from conftest import make_tiny_config, random_model
from helpers import save_checkpoint

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import average as average_checkpoints
from modeling_ast.commands.command_options import CommandError
from modeling_ast.loading import ModelError


def run(*arguments) -> None:
    average_checkpoints.main([str(argument) for argument in arguments])


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    folders = []
    for scale in (1.0, 3.0):
        model = random_model(make_tiny_config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        folders.append(save_checkpoint(tmp_path / f"checkpoint-{scale:.0f}", model, mean=-7.0))
    return folders


def test_the_average_loads_like_any_model(tmp_path, folders):
    run(*folders, "--output_dir", tmp_path / "average")
    first = ASTForAudioClassification.from_pretrained(folders[0]).state_dict()
    for model_class in (ASTForAudioClassification, transformers.ASTForAudioClassification):
        assert model_class.from_pretrained(tmp_path / "average").config.num_labels == 5
    for name, tensor in ASTForAudioClassification.from_pretrained(tmp_path / "average").state_dict().items():
        torch.testing.assert_close(tensor, 2 * first[name])
    assert ASTFeatureExtractor.from_pretrained(tmp_path / "average").mean == -7.0


def test_what_cannot_be_averaged_is_refused(tmp_path, folders):
    random_model(make_tiny_config(hidden_size=64)).save_pretrained(tmp_path / "wider")
    save_checkpoint(tmp_path / "louder", random_model(make_tiny_config()), mean=-4.0)
    for arguments, words in (
        (
            [folders[0], tmp_path / "louder"],
            "louder cannot be used: expected features with mean -7.0, as of the first",
        ),
        ([folders[0], tmp_path / "wider"], "in the first model and"),
        ([tmp_path / "nothing"], "nothing"),
    ):
        with pytest.raises(ModelError, match=words):
            run(*arguments, "--output_dir", tmp_path / "average")
        assert not (tmp_path / "average").exists()


def test_a_folder_that_holds_something_is_not_overwritten(folders):
    with pytest.raises(CommandError, match="new or empty folder"):
        run(*folders, "--output_dir", folders[0])


def test_an_average_that_is_interrupted_leaves_no_half_a_model(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(ASTFeatureExtractor, "save_pretrained", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(*folders, "--output_dir", tmp_path / "average")
    assert not any((tmp_path / "average").iterdir())
