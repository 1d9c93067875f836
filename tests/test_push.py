"""What is uploaded, up to the call that uploads it, and that what was uploaded loads elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
import transformers
from conftest import make_tiny_config, random_model
from datasets import load_dataset
from helpers import contents, end_of, write_sound
from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import pack
from modeling_ast.commands import push as push_to_hub
from modeling_ast.commands import train as run_audio_classification
from modeling_ast.data import synthetic
from modeling_ast.data.labels import DataError
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.loading import ModelError
from modeling_ast.training import publishing

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "modeling_ast"
TOKEN = "hf_" + "secret" * 6
MODEL_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
RUN_FILES = {
    "recipe.yaml",
    "all_results.json",
    "test_results.json",
    "results.csv",
    "per_class_test.csv",
    "example.png",
}
CODE_FILES = {"configuration_ast.py", "fbank.py", "feature_extraction_ast.py", "modeling_ast.py", "samples.py"}
pytestmark = pytest.mark.usefixtures("one_thread")


class Hub:
    """What the Hub was asked for, and in `folder` what it was given."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.calls: list[tuple[str, dict]] = []
        self.is_private = False
        self.tokens: set[str | None] = set()
        self.leaks: set[str] = set()

    def create_repo(self, api, repo_id, **options):
        self.tokens.add(options.pop("token", None) or get_token())
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=repo_id)

    def repo_info(self, api, repo_id, **options):
        return SimpleNamespace(private=self.is_private)

    def create_branch(self, api, repo_id, **options):
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, api=None, **options):
        self.tokens.add(options.pop("token", None) or get_token())
        self.calls.append(("upload_folder", options))
        source = Path(options["folder_path"])
        paths = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        ignored = [*(options.get("ignore_patterns") or []), *DEFAULT_IGNORE_PATTERNS]
        for path in filter_repo_objects(paths, allow_patterns=options.get("allow_patterns"), ignore_patterns=ignored):
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, self.folder / path)
        self.leaks |= {name for name, content in contents(self.folder).items() if TOKEN.encode() in content}
        done = Future()  # the Trainer uploads checkpoints in the background
        done.set_result(None)
        return done

    @property
    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def options(self, call: str) -> dict:
        (options,) = [options for name, options in self.calls if name == call]
        return options


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "repo_info", "create_branch", "upload_folder"):
        method = getattr(hub, name)
        monkeypatch.setattr(HfApi, name, lambda api, *args, method=method, **options: method(api, *args, **options))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A finished run, with everything around it that nobody else is to see."""
    folder = tmp_path / "my-run"
    random_model(make_tiny_config(id2label={0: "rain", 1: "dog", 2: "sea"})).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-5.0, std=4.0).save_pretrained(folder)
    (folder / "recipe.yaml").write_text("dataset_name: ashraq/esc50\nmodel_name_or_path: tiny224\n")
    (folder / "all_results.json").write_text('{"test_accuracy": 0.75, "test_mAP": 0.5}')
    private = ["training_args.bin", "optimizer.pt", "trainer_state.json", "predictions.csv", "predictions.npz", ".env"]
    folders = ["checkpoint-3/model.safetensors", "weight_average/model.safetensors", "predictions/a.csv"]
    for name in RUN_FILES - {"recipe.yaml", "all_results.json"} | {*private, *folders}:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("something")
    return folder


def push(*arguments) -> None:
    push_to_hub.main([str(argument) for argument in arguments])


# What goes up


def test_only_what_belongs_to_the_model_is_uploaded(hub, run_folder):
    push(run_folder, "me/birds")
    assert hub.files == MODEL_FILES | RUN_FILES
    assert hub.options("create_repo") == {"repo_id": "me/birds", "private": None, "exist_ok": True}
    sent = hub.options("upload_folder")
    assert (sent["repo_id"], sent["revision"], sent["commit_message"]) == ("me/birds", None, "Upload my-run")


@pytest.mark.parametrize("options", [[], ["--with_code"]])
def test_the_folder_itself_is_not_changed(hub, run_folder, options):
    before = contents(run_folder)
    push(run_folder, "me/birds", *options, "--license=mit")
    assert contents(run_folder) == before


def test_weights_keep_their_values_and_their_type(hub, run_folder):
    ASTForAudioClassification.from_pretrained(run_folder).bfloat16().save_pretrained(run_folder)
    push(run_folder, "me/birds")
    uploaded, own = (ASTForAudioClassification.from_pretrained(folder) for folder in (hub.folder, run_folder))
    assert uploaded.dtype == torch.bfloat16 and uploaded.config.id2label == {0: "rain", 1: "dog", 2: "sea"}
    for name, tensor in own.state_dict().items():
        assert torch.equal(uploaded.state_dict()[name], tensor), name


def test_the_options_reach_the_hub(hub, run_folder):
    hub.is_private = True
    push(run_folder, "me/birds", "--private", "--revision=small", "--commit_message=Smaller", "--license=apache-2.0")
    assert hub.options("create_repo")["private"] is True
    assert hub.options("create_branch") == {"repo_id": "me/birds", "branch": "small", "exist_ok": True}
    sent = hub.options("upload_folder")
    assert (sent["revision"], sent["commit_message"]) == ("small", "Smaller")
    assert ModelCard.load(hub.folder / "README.md").data.license == "apache-2.0"


def test_a_dry_run_lists_everything_and_needs_neither_token_nor_hub(hub, run_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    push(run_folder, "me/birds", "--dry_run")
    said = capsys.readouterr().out
    assert hub.calls == [] and "Nothing was uploaded" in said
    listed = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ *([\d,]+) (\S+)$", said, re.MULTILINE)}
    assert listed.keys() == MODEL_FILES | RUN_FILES
    assert listed["model.safetensors"] == (run_folder / "model.safetensors").stat().st_size


# The card


def test_a_card_is_written_where_there_is_none(hub, run_folder):
    push(run_folder, "me/birds")
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.model_name == "my-run" and card.data.datasets == ["ashraq/esc50"]
    assert {entry.metric_name: entry.metric_value for entry in card.data.eval_results} == {
        "Accuracy": 0.75,
        "mAP": 0.5,
    }
    assert 'model="me/birds"' in card.text and "Started from random weights" in card.text


def test_a_card_that_is_there_is_kept_but_for_the_address_in_its_example(hub, run_folder):
    written = '---\ntags:\n- mine\n---\n\n# Words\n\nof mine: `pipeline("audio-classification", model="my-run")`\n'
    (run_folder / "README.md").write_text(written)
    push(run_folder, "me/birds")
    assert (hub.folder / "README.md").read_text() == written.replace('"my-run"', '"me/birds"')


def test_a_folder_without_a_run_gets_a_card_too(hub, run_folder):
    """As `convert_checkpoint.py` and `average_checkpoints.py` write them."""
    for name in RUN_FILES:
        (run_folder / name).unlink()
    push(run_folder, "me/birds")
    text = ModelCard.load(hub.folder / "README.md").text
    assert (
        hub.files == MODEL_FILES and "Trained on" not in text and "## Recipe" not in text and "| split |" not in text
    )


# Packed data


def test_packed_shards_are_uploaded_as_a_data_set(hub, tmp_path, capsys):
    for number in range(8):
        write_sound(tmp_path / "data" / ("dog", "rain")[number % 2] / f"{number}.wav", torch.rand(800) / 2)
    (tmp_path / "data" / "dog" / "8.wav").write_bytes(b"no sound")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {tmp_path / 'data'}\nmax_bad_clips: 1\nvalidation_fraction: 0.2\n")
    pack.main([str(recipe), "--output", str(tmp_path / "shards"), "--push_to_hub=me/sounds", "--clips_per_shard=4"])
    assert hub.files == {
        *("README.md", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        "validation-00000-of-00001.parquet",
    }
    made = hub.options("create_repo")
    assert made == {"repo_id": "me/sounds", "private": None, "exist_ok": True, "repo_type": "dataset"}
    assert hub.options("upload_folder")["repo_type"] == "dataset" and "Uploaded to" in capsys.readouterr().out
    rows = load_dataset(str(hub.folder), split="train")  # as its card says
    assert rows.features["label"].names == ["dog", "rain"] and len(rows) == 6


# The code


ELSEWHERE = """
import json, sys
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

torch.set_num_threads(1)
waveform = (torch.arange(16000).sin() / 10).numpy()
report = {}
for name, folder, trust in (("plain", sys.argv[1], False), ("code", sys.argv[2], True)):
    model, loading = AutoModelForAudioClassification.from_pretrained(
        folder, trust_remote_code=trust, output_loading_info=True
    )
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust)
    tagger = pipeline("audio-classification", model=folder, trust_remote_code=trust)
    with torch.no_grad():
        logits = model(**extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits[0].tolist()
    report[name] = {
        "modules": [type(thing).__module__ for thing in (model, extractor, tagger.model)],
        "missing": sorted(map(str, loading["missing_keys"])) + sorted(map(str, loading["unexpected_keys"])),
        "logits": logits,
        "tags": [tag["label"] for tag in tagger({"raw": waveform, "sampling_rate": 16000})],
    }
report["has_package"] = "modeling_ast" in sys.modules
print(json.dumps(report))
"""


@pytest.mark.slow
def test_what_was_uploaded_loads_on_a_machine_without_this_package(hub, run_folder, tmp_path):
    push(run_folder, "me/birds")
    hub.folder.rename(tmp_path / "plain")
    push(run_folder, "me/birds", "--with_code")
    hub.folder.rename(tmp_path / "code")
    process = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "plain", tmp_path / "code"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "HF_HOME": str(tmp_path / "hugging_face")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert not report["has_package"]
    assert all(module.startswith("transformers.") for module in report["plain"]["modules"])
    assert all(module.startswith("transformers_modules.") for module in report["code"]["modules"])

    model = ASTForAudioClassification.from_pretrained(run_folder)
    extractor = ASTFeatureExtractor.from_pretrained(run_folder)
    with torch.no_grad():
        logits = model(**extractor(torch.arange(16000).sin() / 10, return_tensors="pt")).logits[0]
    for name, tolerance in (("plain", 1e-4), ("code", 1e-5)):  # stock has one epsilon for both layer norms
        assert report[name]["missing"] == []
        torch.testing.assert_close(torch.tensor(report[name]["logits"]), logits, atol=tolerance, rtol=0)
        assert report[name]["tags"] == [model.config.id2label[i] for i in logits.argsort(descending=True).tolist()]


def test_with_code_the_modules_go_along_and_the_card_says_so(hub, run_folder):
    push(run_folder, "me/birds", "--with_code")
    assert hub.files == MODEL_FILES | RUN_FILES | CODE_FILES
    named = json.loads((hub.folder / "config.json").read_text())["auto_map"]
    named |= json.loads((hub.folder / "preprocessor_config.json").read_text())["auto_map"]
    assert named.keys() == {"AutoConfig", "AutoModelForAudioClassification", "AutoFeatureExtractor"}
    assert {name.partition(".")[0] + ".py" for name in named.values()} <= CODE_FILES
    assert "trust_remote_code=True" in ModelCard.load(hub.folder / "README.md").text
    assert ASTConfig._auto_class is ASTFeatureExtractor._auto_class is ASTForAudioClassification._auto_class is None


@pytest.mark.parametrize("options", [[], ["--with_code"]])
def test_a_folder_that_names_code_which_it_lacks_is_mended(hub, run_folder, options, tmp_path):
    """Training from a model with code keeps the names of its modules, and copies none of them."""
    push(run_folder, "me/birds", "--with_code")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(hub.folder / name, run_folder / name)
    shutil.rmtree(hub.folder)
    push(run_folder, "me/birds", *options)
    for name in ("config.json", "preprocessor_config.json"):
        assert ("auto_map" in json.loads((hub.folder / name).read_text())) == bool(options)
    assert bool(hub.files & CODE_FILES) == bool(options)


# The handler


ENDPOINT = """
import importlib.util, json, sys
folder = sys.argv[1]
sys.path.insert(0, folder)  # as the endpoint's server does
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(path=folder)
import modeling_ast
print(json.dumps({"package": modeling_ast.__file__, "tags": handler({"inputs": open(sys.argv[2], "rb").read()})}))
"""


@pytest.mark.parametrize("options", [[], ["--with_code"]])
def test_with_handler_everything_that_an_endpoint_needs_goes_along(hub, run_folder, options):
    push(run_folder, "me/birds", "--with_handler", *options)
    package = {f"modeling_ast/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    tables = {f"modeling_ast/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.csv")}
    expected = MODEL_FILES | RUN_FILES | package | tables | {"handler.py", "requirements.txt"}
    assert hub.files == expected | (CODE_FILES if options else set())
    assert (hub.folder / "handler.py").read_bytes() == (PACKAGE / "inference" / "handler.py").read_bytes()
    needed = (hub.folder / "requirements.txt").read_text().split("\n")
    assert any(line.startswith("transformers") for line in needed) and not any("gradio" in line for line in needed)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--with_code"]])
def test_the_uploaded_handler_hears_whole_recordings_by_the_uploaded_package(hub, run_folder, options, tmp_path):
    push(run_folder, "me/birds", "--with_handler", *options)
    noise = torch.randn(40000, generator=torch.Generator().manual_seed(0)) / 10
    soundfile.write(tmp_path / "long.flac", noise.numpy(), 16000)
    process = subprocess.run(
        [sys.executable, "-c", ENDPOINT, hub.folder, tmp_path / "long.flac"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "HF_HOME": str(tmp_path / "hugging_face")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    assert Path(answer["package"]).parent == hub.folder / "modeling_ast"
    expected = audio_tagger(run_folder, device="cpu")(str(tmp_path / "long.flac"))
    assert [tag["label"] for tag in answer["tags"]] == [tag["label"] for tag in expected]
    for tag, same in zip(answer["tags"], expected):
        assert tag["score"] == pytest.approx(same["score"], abs=1e-5)


def test_without_an_installed_package_its_requirements_are_unknown(hub, run_folder, monkeypatch, tmp_path):
    def refuse(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(publishing, "requires", refuse)
    with pytest.raises(ImportError, match=r"which modeling_ast is not: pip install -e '.\[train\]'"):
        push(run_folder, "me/birds", "--with_handler")
    with pytest.raises(ImportError, match="requirements of the installed package"):
        publishing.add_handler(tmp_path)
    assert hub.calls == []


# What goes wrong is one sentence


def command_line(monkeypatch, *arguments) -> str:
    status, said = end_of("push", *arguments)
    assert status == 2 and "\n" not in said
    return said


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def save_base_model(folder):
    ASTForAudioClassification.from_pretrained(folder).base_model.save_pretrained(folder)


def save_other_architecture(folder):
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,),
        conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1, classifier_proj_size=8,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (shutil.rmtree, "not the folder of a finished model: it has no config.json"),
        (remove("preprocessor_config.json"), "it has no preprocessor_config.json"),
        (remove("model.safetensors"), "cannot be used: .*model.safetensors"),
        (write("model.safetensors", "no weights"), "cannot be used: .*header"),
        (write("config.json", "{"), "cannot be used"),
        (save_base_model, "is a model without a classifier, as pre-training makes it"),
        (save_other_architecture, "Expected an Audio Spectrogram Transformer .*got wav2vec2"),
        (lambda folder: ASTFeatureExtractor(num_mel_bins=32).save_pretrained(folder), "one max_length .*64 .*1024"),
        (write("README.md", "---\n- a\n---\n"), "metadata of README.md cannot be read"),
        (write("README.md", "---\na: [\n---\n"), "metadata of README.md cannot be read"),
        (
            write("recipe.yaml", f"dataset_name: a\nhub_token: {TOKEN}\n"),
            "access token stands in .*recipe.yaml",
        ),
        (write("all_results.json", "{"), "all_results.json cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_shared_is_refused_before_the_hub_is_asked(hub, run_folder, monkeypatch, spoil, words):
    spoil(run_folder)
    said = command_line(monkeypatch, run_folder, "me/birds")
    assert said.startswith("error: ") and re.search(words, said)
    assert hub.calls == []


def test_who_calls_it_gets_an_error_of_what_is_wrong(hub, run_folder, tmp_path):
    with pytest.raises(ModelError, match="not the folder of a finished model: it has no config.json"):
        push(tmp_path / "nowhere", "me/birds")
    with pytest.raises(ModelError, match="nowhere is not the folder"):
        publishing.load_folder(tmp_path / "nowhere")
    (run_folder / "README.md").write_text("---\n- a\n---\n")
    with pytest.raises(DataError, match="metadata of README.md cannot be read"):
        publishing.finish_card(run_folder, "me/birds", None, False)
    assert hub.calls == []


def test_without_a_token_the_login_is_named(hub, run_folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "hf auth login" in command_line(monkeypatch, run_folder, "me/birds")
    assert hub.calls == []


def test_a_name_that_the_hub_does_not_take_is_refused(hub, run_folder, monkeypatch):
    assert "Expected NAME/MODEL" in command_line(monkeypatch, run_folder, "me/my birds")


def test_what_should_be_private_is_not_uploaded_where_the_public_sees_it(hub, run_folder, monkeypatch):
    assert "there already and public" in command_line(monkeypatch, run_folder, "me/birds", "--private")
    assert hub.files == set()


def answer(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    "error, words",
    [
        (HfHubHTTPError("x", response=answer(401)), "does not know your token"),
        (HfHubHTTPError("x", response=answer(403)), "may not write there"),
        (
            HfHubHTTPError("Full\nup", response=answer(507)),
            "refused me/birds: Full up",
        ),
        (ConnectionError("no route"), "Nothing was uploaded to me/birds: no route"),
        (ValueError("Invalid metadata in\nREADME.md"), "Nothing was uploaded to me/birds: Invalid metadata in README"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, run_folder, monkeypatch, error, words):
    def refuse(api, **options):
        raise error

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    assert words in command_line(monkeypatch, run_folder, "me/birds")


# The Trainer's own way


@pytest.mark.slow
def test_training_uploads_model_extractor_card_and_recipe_and_no_token(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(synthetic, "CLIPS_PER_CLASS", {"train": 4, "validation": 1, "test": 1})
    monkeypatch.delenv("HF_TOKEN")
    argv = [ROOT / "configs" / "demo.yaml", "--hidden_size=32", "--num_hidden_layers=1", "--num_attention_heads=2"]
    argv += ["--intermediate_size=64", "--num_train_epochs=1", "--disable_tqdm=true", "--linear_baseline=false"]
    argv += ["--output_dir", tmp_path / "run", "--push_to_hub=true", "--hub_model_id=me/birds", f"--hub_token={TOKEN}"]
    run_audio_classification.main([str(argument) for argument in argv])
    assert hub.tokens == {TOKEN} and hub.leaks == set()
    assert hub.calls[-1][1]["repo_id"] == "me/birds"
    assert hub.files >= MODEL_FILES | {"recipe.yaml", "all_results.json", "test_results.json"}
    assert not [name for name in hub.files if "checkpoint" in name or name.startswith("optimizer")]
    text = (hub.folder / "README.md").read_text(encoding="utf-8")
    assert "An Audio Spectrogram Transformer" in text and 'model="me/birds"' in text
