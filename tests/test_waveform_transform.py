"""A function of the user's own for waveforms: what it gets, that its draws repeat, and what is wrong with it."""

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import end_of, few_synthetic_sounds, prepare
from torch.utils.data import DataLoader

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.arguments import AugmentArguments, parse_arguments
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.rows import TrainingRows

few_sounds = few_synthetic_sounds(train=2, validation=1, test=1)
EXTRACTOR = ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-5.0, std=4.0)
LONG = 10480  # samples of 64 frames
MODULE = """
import random
import numpy as np
import torch

GIVEN = []

def note(waveform, sampling_rate):
    GIVEN.append((waveform.copy(), sampling_rate))
    waveform[:] = 0
    return GIVEN[-1][0]

def draw(waveform, sampling_rate):
    speed = random.uniform(0.8, 1.25)
    waveform = np.interp(np.arange(0, len(waveform) - 1, speed), np.arange(len(waveform)), waveform)
    return waveform * np.random.uniform(0.5, 2) + 0.01 * torch.randn(len(waveform)).numpy()

nothing = lambda waveform, sampling_rate: waveform

def halve(waveform, sampling_rate):
    return list(waveform[::2])

def double(waveform, sampling_rate):
    return np.concatenate([waveform, waveform])

def to_pcm(waveform, sampling_rate):
    return (waveform * 32768).round().clip(-32768, 32767).astype(np.int16)

def give_whole_numbers(waveform, sampling_rate):
    return (waveform * 32768).astype(np.int64)

def fail(waveform, sampling_rate):
    return waveform[None]["speed"]

def give_two(waveform, sampling_rate):
    return np.stack([waveform, waveform])

def give_none(waveform, sampling_rate):
    return None

def give_nothing(waveform, sampling_rate):
    return waveform[:0]

def give_infinity(waveform, sampling_rate):
    return waveform / 0
"""


@pytest.fixture(autouse=True)
def sounds(tmp_path, monkeypatch, one_thread):
    """The module, in the current folder, and anew for each test."""
    (tmp_path / "own_sounds.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    yield
    __import__("sys").modules.pop("own_sounds", None)


def make_rows(*lengths: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    waveforms = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    return [
        {"waveform": waveform, "labels": index, "position": index, "path": f"{index}.wav"}
        for index, waveform in enumerate(waveforms)
    ]


def make_collator(function: str, **settings) -> AugmentingCollator:
    augment = AugmentArguments(waveform_transform=f"own_sounds:{function}", **settings)
    return AugmentingCollator(EXTRACTOR, 8, augment=augment)


def features(rows: list[dict], function: str, **settings) -> torch.Tensor:
    collator = make_collator(function, **settings)
    return collator(prepare(collator, rows, rows))["input_values"]


@pytest.mark.parametrize("partner", ["dataset", "batch"])
def test_it_gets_each_clip_that_is_decoded_once_before_mixup(partner):
    rows = make_rows(LONG + 50, 3000)
    settings = {"mixup_probability": 1.0, "mixup_partner": partner, "random_crop": True}
    collator = make_collator("note", **settings)
    taken = prepare(collator, rows, rows)
    from own_sounds import GIVEN

    used = [row["waveform"] for row in taken]
    if partner == "dataset":
        used += [row["partner"]["waveform"] for row in taken]
    assert [rate for _, rate in GIVEN] == [16000] * len(used)
    for (waveform, _), expected in zip(GIVEN, used, strict=True):
        assert waveform.dtype == np.float32 and torch.equal(torch.from_numpy(waveform), expected)
    assert {len(waveform) for waveform, _ in GIVEN} == {LONG, 3000}
    augment = replace(collator.augment, waveform_transform=None)
    plain = prepare(AugmentingCollator(EXTRACTOR, 8, augment=augment), rows, rows)
    assert [len(row["waveform"]) for row in plain] == [len(row["waveform"]) for row in taken]
    assert all(row["waveform"].any() for row in rows)


@pytest.mark.parametrize(("function", "expected"), [("halve", lambda x: x[::2]), ("double", lambda x: x.repeat(2))])
def test_what_it_returns_may_have_another_length(function, expected):
    rows = make_rows(8000, 6000, 801)
    waveforms = [expected(row["waveform"]) for row in rows]
    alone = EXTRACTOR([waveform - waveform.mean() for waveform in waveforms], return_tensors="pt")["input_values"]
    torch.testing.assert_close(features(rows, function), alone, atol=1e-4, rtol=0)


def test_integers_are_pcm():
    rows = make_rows(8000, 801)
    torch.testing.assert_close(features(rows, "to_pcm"), features(rows, "nothing"), atol=0.05, rtol=0)


def test_its_draws_are_the_clips_own_and_leave_all_other_generators_alone():
    rows, found = make_rows(*[8000] * 4), []
    for seed in (0, 1):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        found.append(features(rows, "draw", mixup_probability=0.5, time_mask_frames=9))
        assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(*found)
    same = [{**rows[0], "position": position} for position in range(20)]
    assert len({tuple(clip.flatten().tolist()) for clip in features(same, "draw")}) == 20


class Table(list):
    def __getitems__(self, indices: list[int]) -> list[dict]:
        return [self[index] for index in indices]


def test_data_workers_make_the_same_batches():
    collator = make_collator("draw", mixup_probability=0.5, random_crop=True)
    rows = TrainingRows(Table(make_rows(*[LONG + 99] * 8)), collator.prepare)
    order = [(position, (3 * position) % 8) for position in range(16)]
    loaders = [
        DataLoader(rows, batch_size=4, sampler=order, collate_fn=collator, num_workers=number) for number in (0, 2)
    ]
    for alone, by_workers in zip(*loaders, strict=True):
        assert torch.equal(alone["input_values"], by_workers["input_values"])


def test_a_data_worker_that_is_not_forked_gets_the_function_by_its_name():
    """Where what it needs is pickled, as on macOS, also of what cannot be."""
    rows = make_rows(800)
    collator = make_collator("nothing")
    again = pickle.loads(pickle.dumps(collator))
    assert torch.equal(*(each(prepare(each, rows, rows))["input_values"] for each in (collator, again)))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            "fail",
            r"^waveform_transform own_sounds:fail has failed on 0.wav \(IndexError in .*own_sounds.py, line 33: on",
        ),
        ("give_whole_numbers", "has failed on 0.wav .*PCM of type uint8, int8, int16 or int32, got torch.int64"),
        ("give_two", r"own_sounds:give_two to return a waveform, .* got the shape \(2, 800\) for 0.wav.$"),
        ("give_none", r"own_sounds:give_none to return .* got the shape \(\) for 0.wav"),
        ("give_nothing", r"own_sounds:give_nothing to return .* got the shape \(0,\) for 0.wav"),
        ("give_infinity", "of at least 400 finite numbers, got others for 0.wav"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_it_does_wrong_is_one_sentence_that_names_it_and_the_clip(function, words):
    with pytest.raises(RecipeError, match=words) as found:
        features(make_rows(800), function)
    causes = {"fail": IndexError, "give_whole_numbers": ValueError}
    assert isinstance(found.value.__cause__, causes.get(function, None.__class__))


def write_recipe(folder, function: str):
    (folder / "recipes").mkdir()
    (folder / "recipes" / "beside.py").write_text(MODULE.replace("GIVEN", "TAKEN"))
    recipe = folder / "recipes" / "recipe.yaml"
    recipe.write_text(
        "model_name_or_path: tiny224\nhidden_size: 24\nnum_hidden_layers: 1\nnum_attention_heads: 3\n"
        "intermediate_size: 24\nmax_length: 32\nnum_mel_bins: 32\ndataset_name: synthetic\nuse_cpu: true\n"
        "dataloader_pin_memory: false\ndisable_tqdm: true\noutput_dir: out\ndo_train: true\nmax_steps: 2\n"
        f"dataloader_num_workers: 1\nsave_strategy: 'no'\nwaveform_transform: {function}\n"
    )
    return recipe


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("beside", "Expected waveform_transform as module:function, got beside"),
        ("beside_it:draw", "expected beside_it:draw in an installed module or one in .*recipes, but there is no"),
        ("beside:undraw", "expected the function undraw in beside, got nothing"),
    ],
)
def test_a_function_that_is_not_there_is_told_before_anything_is_read(tmp_path, function, words):
    recipe = write_recipe(tmp_path, function)
    with pytest.raises(RecipeError, match=words):
        parse_arguments([str(recipe)])
    assert parse_arguments([str(recipe), "--do_train=false"]).augment.waveform_transform == function


@pytest.mark.slow
def test_a_function_beside_the_recipe_trains_and_one_that_fails_is_one_sentence_of_the_command(tmp_path):
    recipe = write_recipe(tmp_path, "beside:draw")
    assert end_of("train", recipe) == (0, "")
    status, said = end_of("train", recipe, "--waveform_transform=beside:fail", "--output_dir=other")
    assert status == 2 and said.startswith("error: waveform_transform beside:fail has failed on ")
    assert len(said.splitlines()) == 1
