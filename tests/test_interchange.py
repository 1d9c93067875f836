"""What is exchanged: folders with Transformers' own AST, code with the Hub, weights between geometries, a run resumed.

"Stock" is the AST that comes with Transformers. Where this package must not be loaded, stock runs in its own process.
"""

import functools
import importlib
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import make_tiny_config, random_model
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, Trainer, TrainingArguments

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel, auto_classes
from modeling_ast.modeling_ast import adapt_position_embeddings

close = torch.testing.assert_close
pytestmark = pytest.mark.usefixtures("one_thread")

ID2LABEL = {0: "rain", 1: "dog", 2: "clock", 3: "sea", 4: "rooster"}


def make_extractor() -> ASTFeatureExtractor:
    return ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-5.0, std=4.0)


def make_waveforms() -> list[np.ndarray]:
    """Shorter than the 64 frames, about as long, and longer."""
    generator = torch.Generator().manual_seed(4)
    seconds = (0.3, 0.65, 1.1)
    return [0.1 * torch.randn(int(16000 * s), generator=generator).numpy() for s in seconds]


def run_python(code: str, folder: Path, *arguments, python_path: tuple = (), **environment) -> dict:
    """Run code in a process of its own, in a folder of its own, and read the json that it prints last."""
    folder.mkdir()
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "hugging_face"),
        "PYTHONPATH": os.pathsep.join(map(str, python_path)),
        **environment,
    }
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,  # a question would end the process instead of waiting for an answer
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


# Ours to stock, without this package


class Exchange:
    """Folders that we saved, and what a process without this package made of them."""

    def __init__(self, root: Path):
        self.root = root
        self.waveforms = make_waveforms()
        self.input_values = make_extractor()(self.waveforms, return_tensors="pt")["input_values"]
        self.models = {
            "single_label": random_model(
                make_tiny_config(
                    head_layer_norm_eps=None, problem_type="single_label_classification", id2label=ID2LABEL
                )
            ),
            "multi_label": random_model(
                make_tiny_config(
                    head_layer_norm_eps=1e-5, problem_type="multi_label_classification", id2label=ID2LABEL
                )
            ),
        }
        self.models["with_code"] = self.models["single_label"]
        for name in ("single_label", "multi_label"):
            self.save(name)
        with pytest.MonkeyPatch.context() as patch:
            for class_, auto_class in (
                (ASTConfig, "AutoConfig"),
                (ASTFeatureExtractor, "AutoFeatureExtractor"),
                (ASTForAudioClassification, "AutoModelForAudioClassification"),
            ):
                patch.setattr(class_, "_auto_class", None)  # so that the registration ends with this block
                class_.register_for_auto_class(auto_class)
            self.save("with_code")
        np.save(root / "input_values.npy", self.input_values.numpy())
        np.savez(root / "waveforms.npz", *self.waveforms)

    def save(self, name: str) -> None:
        # A copy: saving with code writes the code's place into the configuration.
        model = random_model(ASTConfig.from_dict(self.models[name].config.to_dict()))
        model.save_pretrained(self.root / name)
        make_extractor().save_pretrained(self.root / name)

    @torch.no_grad()
    def logits(self, name: str) -> torch.Tensor:
        return self.models[name](self.input_values).logits

    @functools.cached_property
    def without_package(self) -> dict:
        return run_python(WITHOUT_PACKAGE, self.root / "elsewhere", self.root)


WITHOUT_PACKAGE = """
import json, sys
from pathlib import Path
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

torch.set_num_threads(1)
root = Path(sys.argv[1])
input_values = torch.from_numpy(np.load(root / "input_values.npy"))
waveforms = list(np.load(root / "waveforms.npz").values())


@torch.no_grad()
def use(folder, **options):
    folder = root / folder
    model, loading = AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True, **options)
    extractor = AutoFeatureExtractor.from_pretrained(folder, **options)
    tagger = pipeline("audio-classification", model=str(folder), top_k=None, **options)
    features = extractor(waveforms, sampling_rate=16000, return_tensors="pt")["input_values"]
    return {
        "modules": [type(thing).__module__ for thing in (model, extractor, tagger.model, tagger.feature_extractor)],
        "loading": {key: sorted(map(str, value)) for key, value in loading.items() if value},
        "logits": model(input_values).logits.tolist(),
        "features": features.tolist(),
        "logits_of_features": model(features).logits.tolist(),
        "scores": [{score["label"]: score["score"] for score in tagger(waveform)} for waveform in waveforms],
    }


report = {
    "single_label": use("single_label"),
    "multi_label": use("multi_label"),
    "None": use("with_code"),
    "False": use("with_code", trust_remote_code=False),
    "True": use("with_code", trust_remote_code=True),
}
adapted = AutoModelForAudioClassification.from_pretrained(
    root / "with_code", trust_remote_code=True, max_length=96, time_stride=8
)
report["adapted_table"] = adapted.base_model.embeddings.position_embeddings.tolist()
report["package_loaded"] = "modeling_ast" in sys.modules
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    return Exchange(tmp_path_factory.mktemp("exchange"))


def test_the_other_process_does_not_load_this_package(exchange):
    assert not exchange.without_package["package_loaded"]


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_our_folder_gives_stock_classes_without_this_package(exchange, name):
    modules = exchange.without_package[name]["modules"]
    assert len(modules) == 4 and all(module.startswith("transformers.") for module in modules)


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_stock_finds_nothing_missing_and_nothing_unexpected_in_our_file(exchange, name):
    assert exchange.without_package[name]["loading"] == {}


@pytest.mark.parametrize(("name", "tolerance"), [("single_label", 1e-6), ("multi_label", 1e-4)])
def test_stock_gives_our_logits(exchange, name, tolerance):
    """To rounding where both epsilons agree; stock ignores the second one, which costs less than 1e-4."""
    logits = exchange.logits(name)
    assert logits.std() > 0.1
    close(torch.tensor(exchange.without_package[name]["logits"]), logits, atol=tolerance, rtol=0)


def test_stock_extractor_gives_our_features_from_our_folder(exchange):
    features = torch.tensor(exchange.without_package["single_label"]["features"])
    close(features, exchange.input_values, atol=2e-6, rtol=0)


def test_our_preprocessor_config_names_no_class(exchange):
    written = json.loads((exchange.root / "single_label" / "preprocessor_config.json").read_text())
    assert "feature_extractor_type" not in written
    assert (written["max_length"], written["num_mel_bins"], written["mean"], written["std"]) == (64, 32, -5.0, 4.0)


# The pipeline


def scores_by_hand(logits, problem_type: str) -> list[dict]:
    logits = torch.as_tensor(logits)
    probabilities = logits.softmax(dim=-1) if problem_type == "single_label" else logits.sigmoid()
    return [dict(zip(ID2LABEL.values(), clip)) for clip in probabilities.tolist()]


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label"])
def test_pipeline_scores_are_those_of_the_model_called_by_hand(exchange, problem_type):
    tagger = transformers.pipeline("audio-classification", model=str(exchange.root / problem_type), top_k=None)
    assert isinstance(tagger.model, ASTForAudioClassification)
    assert isinstance(tagger.feature_extractor, ASTFeatureExtractor)
    by_hand = scores_by_hand(exchange.logits(problem_type), problem_type)
    for waveform, expected in zip(exchange.waveforms, by_hand):
        assert {score["label"]: score["score"] for score in tagger(waveform)} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label"])
def test_pipeline_scores_are_those_of_the_model_called_by_hand_without_this_package(exchange, problem_type):
    report = exchange.without_package[problem_type]
    by_hand = scores_by_hand(report["logits_of_features"], problem_type)
    for scores, expected in zip(report["scores"], by_hand):
        assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label"])
def test_pipeline_scores_do_not_depend_on_this_package(exchange, problem_type):
    with_package = scores_by_hand(exchange.logits(problem_type), problem_type)
    for scores, expected in zip(exchange.without_package[problem_type]["scores"], with_package):
        assert scores == pytest.approx(expected, abs=2e-5)


# Code carried along


def test_code_is_carried_along_in_flat_files(exchange):
    files = {path.name for path in (exchange.root / "with_code").glob("*.py")}
    assert files == {"configuration_ast.py", "fbank.py", "feature_extraction_ast.py", "modeling_ast.py", "samples.py"}


def test_registration_for_carrying_code_did_not_outlive_its_test(exchange):
    assert ASTConfig._auto_class is ASTFeatureExtractor._auto_class is ASTForAudioClassification._auto_class is None
    assert not list((exchange.root / "single_label").glob("*.py"))


@pytest.mark.parametrize("trust", ["None", "False"])
def test_carried_code_is_neither_run_nor_asked_about_without_trust(exchange, trust):
    report = exchange.without_package[trust]
    assert all(module.startswith("transformers.") for module in report["modules"]) and report["loading"] == {}
    close(torch.tensor(report["logits"]), exchange.logits("with_code"), atol=1e-6, rtol=0)


def test_carried_code_runs_with_trust(exchange):
    report = exchange.without_package["True"]
    names = [module.rsplit(".", 1)[-1] for module in report["modules"]]
    assert all(module.startswith("transformers_modules.") for module in report["modules"])
    assert names == ["modeling_ast", "feature_extraction_ast"] * 2
    assert report["loading"] == {}
    close(torch.tensor(report["logits"]), exchange.logits("with_code"), atol=1e-6, rtol=0)
    close(torch.tensor(report["features"]), exchange.input_values, atol=1e-6, rtol=0)


def test_carried_code_adapts_too(exchange):
    table = exchange.models["with_code"].base_model.embeddings.position_embeddings.detach()
    expected = independent_adaptation(table, (2, 5), (2, 11))
    close(torch.tensor(exchange.without_package["adapted_table"]), expected, atol=1e-6, rtol=0)


# Stock to ours


@pytest.fixture
def stock_folder(tmp_path):
    """A folder written by stock, and the model that wrote it."""
    options = {key: value for key, value in make_tiny_config().to_diff_dict().items() if key != "head_layer_norm_eps"}
    model = random_model(transformers.ASTConfig(**options), transformers.ASTForAudioClassification)
    model.save_pretrained(tmp_path)
    transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(tmp_path)
    return tmp_path, model


def test_parameter_names_in_memory_are_the_names_in_stocks_file(stock_folder):
    folder, _ = stock_folder
    assert (
        load_file(folder / "model.safetensors").keys()
        == ASTForAudioClassification(make_tiny_config()).state_dict().keys()
    )


def test_parameter_names_in_our_file_are_the_names_in_stocks_file(stock_folder, tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "ours")
    ours, stock = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ours", stock_folder[0]))
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in stock.items()}


@torch.no_grad()
@pytest.mark.parametrize("auto", [True, False])
def test_ours_gives_stocks_logits(stock_folder, input_values, auto):
    folder, stock = stock_folder
    loader = AutoModelForAudioClassification if auto else ASTForAudioClassification
    ours, loading = loader.from_pretrained(folder, output_loading_info=True)
    assert type(ours) is ASTForAudioClassification
    assert not any(loading.values()), loading
    close(ours(input_values).logits, stock(input_values).logits, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("auto", [True, False])
def test_ours_loads_stocks_base_model(stock_folder, input_values, tmp_path, auto):
    _, stock = stock_folder
    stock.base_model.save_pretrained(tmp_path / "base")
    ours, loading = (AutoModel if auto else ASTModel).from_pretrained(tmp_path / "base", output_loading_info=True)
    assert type(ours) is ASTModel
    assert not any(loading.values()), loading
    close(ours(input_values).pooler_output, stock.base_model(input_values).pooler_output, atol=1e-5, rtol=1e-6)


def test_base_model_file_leaves_only_the_head_fresh(stock_folder, tmp_path):
    _, stock = stock_folder
    stock.base_model.save_pretrained(tmp_path / "base")
    model, loading = ASTForAudioClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(loading["missing_keys"]) == {name for name in model.state_dict() if name.startswith("classifier.")}
    close(model.base_model.embeddings.cls_token, stock.base_model.embeddings.cls_token, atol=0, rtol=0)


def test_our_extractor_gives_stocks_features(stock_folder):
    folder, _ = stock_folder
    ours, stock = (c.from_pretrained(folder) for c in (ASTFeatureExtractor, transformers.ASTFeatureExtractor))
    features = [
        extractor(make_waveforms(), sampling_rate=16000, return_tensors="pt")["input_values"]
        for extractor in (ours, stock)
    ]
    close(*features, atol=2e-6, rtol=0)


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_our_extractor_returns_what_stock_returns(return_tensors):
    ours = make_extractor()
    stock = transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-5.0, std=4.0)
    arguments = {"sampling_rate": 16000, "return_tensors": return_tensors}
    ours, stock = (extractor(make_waveforms(), **arguments)["input_values"] for extractor in (ours, stock))
    assert type(ours) is type(stock) and type(ours[0]) is type(stock[0])
    close(torch.as_tensor(np.stack(list(ours))), torch.as_tensor(np.stack(list(stock))), atol=2e-6, rtol=0)


def test_auto_feature_extractor_gives_ours_for_our_folder_and_stock_for_stocks(exchange, stock_folder):
    assert type(AutoFeatureExtractor.from_pretrained(exchange.root / "single_label")) is ASTFeatureExtractor
    assert type(AutoFeatureExtractor.from_pretrained(stock_folder[0])) is transformers.ASTFeatureExtractor


def test_import_and_auto_classes_survive_audio_processors(tiny_model, tmp_path, monkeypatch):
    """A stand-in for what Transformers' pull requests 48113 and 48115 propose: no name here is its code."""

    class AutoAudioProcessor:
        registered = {}

        @classmethod
        def register(cls, config_class, processor_class, exist_ok=False):
            cls.registered[config_class] = {"torch": processor_class}  # a class for each backend

        @classmethod
        def from_pretrained(cls, folder):
            config = transformers.AutoConfig.from_pretrained(folder)
            return cls.registered[type(config)]["torch"].from_pretrained(folder, _from_auto=True)

    class OldAuto(AutoAudioProcessor):
        @classmethod
        def register(cls, *arguments, **options):
            warnings.warn("AutoFeatureExtractor.register is deprecated", FutureWarning, stacklevel=2)
            AutoAudioProcessor.register(*arguments, **options)

    plain_init = transformers.FeatureExtractionMixin.__init__

    def warning_init(self, **options):
        warnings.warn("FeatureExtractionMixin is deprecated", FutureWarning, stacklevel=2)
        plain_init(self, **options)

    library = sys.modules["transformers"]  # what an import takes names from, not always what this file imported
    monkeypatch.setattr(library, "AutoAudioProcessor", AutoAudioProcessor, raising=False)
    monkeypatch.setattr(library, "AutoFeatureExtractor", OldAuto)
    monkeypatch.setattr(transformers.FeatureExtractionMixin, "__init__", warning_init)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        importlib.reload(auto_classes)  # registers as the first import does
    tiny_model.save_pretrained(tmp_path)
    with pytest.warns(FutureWarning, match="FeatureExtractionMixin"):
        make_extractor().save_pretrained(tmp_path)
    for auto_class in (AutoAudioProcessor, OldAuto):
        with pytest.warns(FutureWarning, match="FeatureExtractionMixin"):
            extractor = auto_class.from_pretrained(tmp_path)
        assert type(extractor) is ASTFeatureExtractor and extractor.to_dict() == make_extractor().to_dict()
    assert type(AutoModelForAudioClassification.from_pretrained(tmp_path)) is ASTForAudioClassification


# What is imported


OPTIONAL = ["datasets", "evaluate", "matplotlib", "sklearn", "soundfile", "torchaudio"]

WITH_PACKAGE = """
import json, sys
from pathlib import Path
import modeling_ast
import torch

loaded = sorted({name.split(".")[0] for name in sys.modules}.union(getattr(sys, "tried_to_load", ())))

torch.manual_seed(0)
config = modeling_ast.ASTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_length=64, num_mel_bins=32
)
model = modeling_ast.ASTForAudioClassification(config)
extractor = modeling_ast.ASTFeatureExtractor(max_length=64, num_mel_bins=32)
input_values = extractor([0.1 * torch.randn(16000)] * 2, sampling_rate=16000, return_tensors="pt")["input_values"]
loss = model.train()(input_values, labels=torch.tensor([0, 1])).loss
loss.backward()
model.save_pretrained("model")
extractor.save_pretrained("model")

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

autos = (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification)
print(json.dumps({
    "loaded": loaded,
    "auto": [type(auto.from_pretrained("model")).__module__ for auto in autos],
    "loss": loss.item(),
    "learns": all(parameter.grad is not None for parameter in model.parameters()),
}))
"""


BROKEN_PACKAGE = """
import sys
sys.tried_to_load = [*getattr(sys, "tried_to_load", ()), __name__]
raise RuntimeError(f"{__name__} was built for another machine")
"""


@pytest.fixture(scope="module")
def beside_broken_torchaudio(tmp_path_factory):
    """A process with this package, where torchaudio and soundfile are there but cannot be loaded."""
    root = tmp_path_factory.mktemp("broken")
    for name in ("torchaudio", "soundfile"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text(BROKEN_PACKAGE)
    package = Path(auto_classes.__file__).parents[1]
    return run_python(WITH_PACKAGE, root / "elsewhere", python_path=(root, package))


@pytest.mark.slow
def test_importing_the_package_loads_the_core_alone(beside_broken_torchaudio):
    assert set(OPTIONAL).isdisjoint(beside_broken_torchaudio["loaded"])


@pytest.mark.slow
def test_the_core_works_beside_a_broken_torchaudio(beside_broken_torchaudio):
    assert beside_broken_torchaudio["learns"]
    assert 0.1 < beside_broken_torchaudio["loss"] < 5
    assert [module.split(".")[0] for module in beside_broken_torchaudio["auto"]] == ["modeling_ast"] * 4


# Adaptation at loading


SOURCE = {"max_length": 110, "num_mel_bins": 48, "frequency_stride": 10, "time_stride": 10}
SOURCE_GRID = (4, 10)

# What is asked for, and the grid of patches that follows.
GEOMETRIES = [
    ({"max_length": 64}, (4, 5)),
    ({"max_length": 92}, (4, 8)),
    ({"max_length": 150}, (4, 14)),
    ({"num_mel_bins": 32}, (2, 10)),
    ({"num_mel_bins": 64}, (5, 10)),
    ({"frequency_stride": 5}, (7, 10)),
    ({"time_stride": 16}, (4, 6)),
    ({"frequency_stride": 16, "time_stride": 4}, (3, 24)),
    ({"max_length": 160, "num_mel_bins": 32, "frequency_stride": 7, "time_stride": 12}, (3, 13)),
]
GEOMETRY_IDS = [" ".join(f"{key}={value}" for key, value in options.items()) for options, _ in GEOMETRIES]


def load_by_configuration(folder, **options):
    return ASTForAudioClassification.from_pretrained(folder, config=ASTConfig.from_pretrained(folder, **options))


LOADERS = {
    "class": ASTForAudioClassification.from_pretrained,
    "auto": AutoModelForAudioClassification.from_pretrained,
    "class, sizes may differ": functools.partial(
        ASTForAudioClassification.from_pretrained, ignore_mismatched_sizes=True
    ),
    "auto, sizes may differ": functools.partial(
        AutoModelForAudioClassification.from_pretrained, ignore_mismatched_sizes=True
    ),
    "configuration": load_by_configuration,
}
every_loader = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())


def independent_adaptation(table, source_grid, target_grid):
    """The rule once more: cut the centre out, or interpolate between the centres of cells; time before frequency."""
    patches = table[0, 2:].double().numpy().reshape(*source_grid, -1)
    for axis in (1, 0):
        source, target = source_grid[axis], target_grid[axis]
        if target <= source:
            start = source // 2 - target // 2
            patches = np.take(patches, range(start, start + target), axis=axis)
        else:
            centres = (np.arange(target) + 0.5) * source / target - 0.5
            patches = np.apply_along_axis(
                lambda row, at=centres, n=source: np.interp(at, np.arange(n), row), axis, patches
            )
    return torch.cat((table[0, :2], torch.from_numpy(patches.reshape(-1, table.shape[2])).float()))[None]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model = random_model(make_tiny_config(**SOURCE))
    model.save_pretrained(folder)
    return folder, model


def positions(model) -> torch.Tensor:
    return model.base_model.embeddings.position_embeddings.detach()


@pytest.mark.parametrize("source_grid", [(4, 10), (5, 9)])
@pytest.mark.parametrize("target_grid", [(4, 9), (3, 10), (2, 5), (1, 1), (7, 12), (6, 3), (3, 20)])
def test_adaptation_follows_its_rule(source_grid, target_grid):
    table = 0.1 * torch.randn(1, 2 + source_grid[0] * source_grid[1], 8, generator=torch.Generator().manual_seed(8))
    expected = independent_adaptation(table, source_grid, target_grid)
    close(adapt_position_embeddings(table, source_grid, target_grid), expected, atol=1e-6, rtol=0)


@every_loader
@pytest.mark.parametrize(("options", "grid"), GEOMETRIES, ids=GEOMETRY_IDS)
def test_loading_adapts_to_the_geometry_asked_for(source, load, options, grid):
    folder, original = source
    model = load(folder, **options)
    config, wanted = model.config, {**SOURCE, **options}
    assert {key: getattr(config, key) for key in SOURCE} == wanted
    assert (config.num_frequency_patches, config.num_time_patches) == grid

    close(positions(model), independent_adaptation(positions(original), SOURCE_GRID, grid), atol=1e-6, rtol=0)
    close(positions(model), adapt_position_embeddings(positions(original), SOURCE_GRID, grid), atol=0, rtol=0)
    projection = model.base_model.embeddings.patch_embeddings.projection
    assert projection.stride == (wanted["frequency_stride"], wanted["time_stride"])
    rest = {name: tensor for name, tensor in model.state_dict().items() if "position_embeddings" not in name}
    close(rest, {name: original.state_dict()[name] for name in rest}, atol=0, rtol=0)

    logits = model(torch.zeros(2, wanted["max_length"], wanted["num_mel_bins"])).logits
    assert logits.shape == (2, 5) and logits.isfinite().all()


@every_loader
def test_adapting_to_the_same_geometry_is_the_identity(source, load, caplog):
    folder, original = source
    model = load(folder, **SOURCE)
    close(model.state_dict(), original.state_dict(), atol=0, rtol=0)
    assert our_lines(caplog) == []


def test_a_length_with_the_same_patches_keeps_the_table(source):
    folder, original = source
    model = ASTForAudioClassification.from_pretrained(folder, max_length=115)
    assert model.config.max_length == 115
    assert torch.equal(positions(model), positions(original))


def our_lines(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("modeling_ast") and record.levelno >= logging.WARNING
    ]


def test_adaptation_is_said_in_one_line(source, caplog):
    ASTForAudioClassification.from_pretrained(source[0], max_length=64, num_mel_bins=32)
    (line,) = our_lines(caplog)
    assert "from 4 x 10 to 2 x 5" in line


@every_loader
@pytest.mark.parametrize("geometry", [{}, {"max_length": 150, "frequency_stride": 16}], ids=["same", "other"])
def test_another_number_of_labels_gives_a_fresh_head_when_sizes_may_differ(source, load, geometry, caplog, request):
    folder, original = source
    options = {"num_labels": 7, **geometry}
    if "sizes may differ" not in request.node.callspec.id:
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            load(folder, **options)
        return
    model = load(folder, **options)
    assert model.config.num_labels == model.num_labels == 7
    assert model.classifier.dense.weight.shape == (7, 32)
    assert model.classifier.dense.weight.std() > 1e-3
    heads = [line for line in our_lines(caplog) if "head" in line]
    assert len(heads) == 1 and "7 labels" in heads[0]
    kept = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "classifier.dense" not in name and "position_embeddings" not in name
    }
    close(kept, {name: original.state_dict()[name] for name in kept}, atol=0, rtol=0)
    grid = (model.config.num_frequency_patches, model.config.num_time_patches)
    close(positions(model), independent_adaptation(positions(original), SOURCE_GRID, grid), atol=1e-6, rtol=0)


def test_base_model_adapts_at_loading(source):
    folder, original = source
    model = ASTModel.from_pretrained(folder, max_length=150)
    close(positions(model), independent_adaptation(positions(original), SOURCE_GRID, (4, 14)), atol=1e-6, rtol=0)


def test_half_precision_positions_are_adapted_in_float32(source):
    folder, original = source
    options = {"max_length": 150, "num_mel_bins": 64}
    table = positions(ASTForAudioClassification.from_pretrained(folder, dtype=torch.bfloat16, **options))
    expected = adapt_position_embeddings(positions(original).bfloat16().float(), SOURCE_GRID, (5, 14))
    assert torch.equal(table, expected.bfloat16())


def test_the_callers_configuration_is_not_changed(source):
    folder, _ = source
    config = ASTConfig.from_pretrained(folder, max_length=150)
    before = config.to_dict()
    model = ASTForAudioClassification.from_pretrained(folder, config=config)
    assert config.to_dict() == before
    assert model.config is not config and model.config.max_length == 150


@torch.no_grad()
def test_adapted_model_can_be_saved_and_loaded_by_ours_and_by_stock(source, tmp_path):
    model = ASTForAudioClassification.from_pretrained(
        source[0], max_length=150, frequency_stride=16, head_layer_norm_eps=None
    )
    model.save_pretrained(tmp_path)
    input_values = torch.randn(2, 150, 48, generator=torch.Generator().manual_seed(5))
    for model_class in (ASTForAudioClassification, transformers.ASTForAudioClassification):
        loaded = model_class.from_pretrained(tmp_path)
        close(loaded(input_values).logits, model(input_values).logits, atol=1e-6, rtol=0)


def test_loaded_model_can_be_adapted_in_place(source):
    folder, _ = source
    model = ASTForAudioClassification.from_pretrained(folder)
    model.adapt_geometry(max_length=150, frequency_stride=16)
    loaded = ASTForAudioClassification.from_pretrained(folder, max_length=150, frequency_stride=16)
    close(model.state_dict(), loaded.state_dict(), atol=0, rtol=0)
    assert model.config.to_diff_dict() == loaded.config.to_diff_dict()


def test_adapted_positions_are_still_trained(source):
    model = ASTForAudioClassification.from_pretrained(source[0], max_length=150)
    model(torch.randn(2, 150, 48), labels=torch.tensor([0, 1])).loss.backward()
    assert model.base_model.embeddings.position_embeddings.grad.any()


def test_impossible_geometry_leaves_the_model_unchanged(source):
    model = ASTForAudioClassification.from_pretrained(source[0])
    with pytest.raises(Exception, match="time_stride of at least 1, got 0"):
        model.adapt_geometry(max_length=64, time_stride=0)
    close(model.state_dict(), source[1].state_dict(), atol=0, rtol=0)
    assert model.config.max_length == SOURCE["max_length"]


@every_loader
def test_another_patch_size_is_refused(source, load):
    with pytest.raises(ValueError, match="patch_size 16.*got 8"):
        load(source[0], patch_size=8)


def test_table_of_another_size_than_its_grid_is_refused():
    with pytest.raises(ValueError, match="38 position embeddings for a grid of 4 x 9 .*got 37"):
        adapt_position_embeddings(torch.zeros(1, 37, 8), (4, 9), (4, 9))


# A run of the Trainer


def make_clips(num_clips: int, seed: int, multi_label: bool = False) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_clips, 64, 32, generator=generator)
    if multi_label:
        labels = torch.randint(2, (num_clips, 5), generator=generator).float()
    else:
        labels = torch.randint(5, (num_clips,), generator=generator)
    return [{"input_values": v, "labels": y} for v, y in zip(values, labels)]


def make_trainer(model, folder, **options) -> Trainer:
    defaults = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
        "report_to": "none",
    }
    datasets = {"train_dataset": make_clips(8, seed=6), "eval_dataset": make_clips(8, seed=7)}
    datasets.update({key: options.pop(key) for key in datasets if key in options})
    return Trainer(model, TrainingArguments(str(folder), **{**defaults, **options}), **datasets)


def step_losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_resumed_run_gives_the_losses_of_an_uninterrupted_one(tmp_path):
    config = make_tiny_config(hidden_dropout_prob=0.1)  # the random state has to be resumed too
    whole = make_trainer(random_model(config), tmp_path, save_strategy="epoch")
    whole.train()
    torch.manual_seed(123)
    resumed = make_trainer(ASTForAudioClassification(config), tmp_path, save_strategy="epoch")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(step_losses(whole)) == 8
    assert step_losses(resumed) == pytest.approx(step_losses(whole), rel=1e-6)
    close(resumed.model.state_dict(), whole.model.state_dict())


def test_load_best_model_at_end_gives_back_the_best_loss(tiny_model, tmp_path):
    trainer = make_trainer(
        tiny_model,
        tmp_path,
        num_train_epochs=3,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert (
        min(losses) < losses[-1] - 1e-3
    )  # training on noise: had the last epoch been the best, this would show nothing
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("multi_label", [False, True], ids=["single_label", "multi_label"])
def test_loss_and_gradient_do_not_depend_on_accumulation(tmp_path, multi_label):
    lines = []
    for batch_size, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            random_model(make_tiny_config()),
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            train_dataset=make_clips(8, seed=6, multi_label=multi_label),
        )
        trainer.train()
        lines.append({key: trainer.state.log_history[0][key] for key in ("loss", "grad_norm")})
    assert lines[1] == pytest.approx(lines[0], rel=1e-5)


def test_a_configuration_by_path_adapts_too(source, tmp_path):
    folder, _ = source
    config = ASTConfig.from_pretrained(folder)
    config.max_length = 48
    config.save_pretrained(tmp_path)
    adapted = ASTForAudioClassification.from_pretrained(folder, config=str(tmp_path))
    expected = ASTForAudioClassification.from_pretrained(folder, max_length=48)
    assert torch.equal(positions(adapted), positions(expected))


def test_adapting_one_model_leaves_another_with_the_same_configuration_alone(tiny_config, input_values):
    first, second = ASTForAudioClassification(tiny_config), ASTForAudioClassification(tiny_config)
    first.adapt_geometry(max_length=48)
    first.reset_classifier({0: "a", 1: "b"})
    assert second(input_values).logits.shape == (3, 5)
    assert first(input_values[:, :48]).logits.shape == (3, 2)


@pytest.mark.parametrize("id2label", [{}, {0: "a", 2: "b"}, {0: "a", 1: "a"}])
def test_labels_that_cannot_be_are_refused(tiny_model, id2label):
    with pytest.raises(ValueError, match="Expected labels"):
        tiny_model.reset_classifier(id2label)


def test_files_with_transformers_newer_names_load_and_are_saved_with_ours(tiny_config, tmp_path):
    stock = transformers.ASTForAudioClassification(transformers.ASTConfig(**tiny_config.to_dict())).eval()
    stock.save_pretrained(tmp_path / "new", save_original_format=False)
    ours, info = ASTForAudioClassification.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours.save_pretrained(tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == ours.state_dict().keys()


def test_an_adapter_is_trained_and_its_merged_folder_gives_equal_logits_in_stock(tiny_config, input_values, tmp_path):
    peft = pytest.importorskip("peft")
    tiny_config.head_layer_norm_eps = None
    model = random_model(tiny_config)
    before = model(input_values).logits.detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"]))
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
    for _ in range(2):  # an adapter's second matrix starts at zero: the first step trains that alone
        optimizer.zero_grad()
        adapted(input_values=input_values, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    merged = adapted.eval().merge_and_unload()
    merged.save_pretrained(tmp_path)
    stock = transformers.ASTForAudioClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = merged(input_values).logits
        assert (expected - before).abs().max() > 1e-3
        close(stock(input_values).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model_class", "target_modules"),
    [
        (ASTForAudioClassification, ["query", "key", "value"]),
        (ASTForAudioClassification, ["attention.output.dense"]),
        (ASTForAudioClassification, ["intermediate.dense"]),
        (ASTForAudioClassification, r".*layer\.\d+\.output\.dense"),
        (transformers.ASTForAudioClassification, ["q_proj", "k_proj", "v_proj"]),
        (transformers.ASTForAudioClassification, ["o_proj"]),
        (transformers.ASTForAudioClassification, ["fc1"]),
        (transformers.ASTForAudioClassification, ["fc2"]),
    ],
    ids=str,
)
def test_names_of_readmes_table_find_one_kind_of_layer(tiny_config, model_class, target_modules):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model_class(tiny_config), peft.LoraConfig(r=2, target_modules=target_modules))
    found = [name for name, _ in adapted.named_modules() if name.endswith(".lora_A")]
    kinds = len(target_modules) if isinstance(target_modules, list) else 1
    assert len(found) == kinds * tiny_config.num_hidden_layers
