"""What tagging may cost: the precision and the hop that keep to it are chosen by what a machine takes."""

import json

import pytest
from test_tag import save_model, write_sound

from modeling_ast.commands.command_options import CommandError
from modeling_ast.commands.tag import main
from modeling_ast.inference import budget
from modeling_ast.inference.budget import Plan, make_plan
from modeling_ast.inference.pipeline import audio_tagger

WINDOW = 0.6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tagger(model):
    return audio_tagger(model, device="cpu")


@pytest.fixture
def machine(monkeypatch):
    """Seconds a window, by precision, and which of them there is."""

    def takes(**seconds):
        monkeypatch.setattr(budget, "faster_dtypes", lambda classifier: [name for name in seconds if name != "own"])
        monkeypatch.setattr(budget, "measure", lambda classifier, window, dtype, batch_size: seconds[dtype or "own"])

    return takes


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (1, Plan(None, 0.06)),  # a tenth of the window, though more would be affordable
        (0.25, Plan(None, 0.16)),
        (0.1, Plan(None, 0.4)),  # the usual hop
        (0.09, Plan("bfloat16", 0.23)),
        (0.04, Plan("int8", 0.25)),
        (0.02, Plan("int8", 0.5)),  # none affords the usual hop
        (0.0167, Plan("int8", 0.6)),
    ],
)
def test_the_nearest_precision_that_affords_the_usual_hop_is_taken(tagger, machine, allowed, expected):
    machine(own=0.04, bfloat16=0.02, int8=0.01)
    assert make_plan(tagger, WINDOW, allowed) == expected


def test_what_is_no_faster_is_not_taken(tagger, machine):
    machine(own=0.04, int8=0.05)
    assert make_plan(tagger, WINDOW, 0.08) == Plan(None, 0.5)
    with pytest.raises(ValueError, match=r"at least 0.0667 seconds of .* which the model needs .* got 0.06\."):
        make_plan(tagger, WINDOW, 0.06)


@pytest.mark.slow
def test_a_machine_is_measured(tagger):
    """In what it can compute: another hop of a tenth, and the pipeline is as it was."""
    dtypes = budget.faster_dtypes(tagger)
    assert set(dtypes) <= {"bfloat16", "int8"}
    before = tagger.model
    assert all(0 < budget.measure(tagger, WINDOW, dtype, 2) < 60 for dtype in (None, *dtypes))
    assert tagger.model is before and str(before.dtype) == "torch.float32"


def test_tagging_says_what_it_chose_and_goes_on_with_it(model, tmp_path, capsys):
    write_sound(tmp_path / "sounds" / "a.wav", 2.0)
    command = [
        str(tmp_path / "sounds"),
        "--model",
        str(model),
        "--output_dir",
        str(tmp_path / "out"),
        "--window",
        "0.6",
    ]
    assert main([*command, "--budget", "1000"]) == 0
    assert "Within a budget of 1000 s a second of sound: --hop 0.06, " in capsys.readouterr().err
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["hop"] == 0.06 and "dtype" not in settings
    write_sound(tmp_path / "sounds" / "b.wav", 1.0)
    assert main([*command, "--budget", "500"]) == 0  # of which nothing is measured any more
    assert "out was begun with --hop 0.06, and goes on so, whatever the budget." in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["path"].rpartition("/")[2] for line in lines] == ["a.wav", "b.wav"]
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--budget", "1", "--window", "inf"], "Expected a window of at least .*, got inf"),
        (["--budget", "1", "--window", "0.01"], "Expected a window of at least .*, got 0.01"),
        (["--budget", "0"], "Expected budget of at least 1e-06, got 0.0"),
        (["--budget", "1", "--hop", "0.5"], "--budget without --hop and --dtype, which it chooses"),
        (["--budget", "1", "--dtype", "int8"], "--budget without --hop and --dtype, which it chooses"),
        (["--budget", "1", "--part", "1/2"], "for one process alone"),
        pytest.param(["--budget", "2e-6"], "Expected a budget of at least .* got 2e-06", marks=pytest.mark.slow),
    ],
)
def test_budgets_that_cannot_be_kept_are_one_sentence(model, tmp_path, given, words):
    write_sound(tmp_path / "a.wav", 1.0)
    with pytest.raises(CommandError, match=words):
        main([str(tmp_path / "a.wav"), "--model", str(model), "--output_dir", str(tmp_path / "out"), *given])
    assert not (tmp_path / "out" / "settings.json").exists()
