"""What the labels of a data set say: their names and counts, sounds that stand twice, and groups of clips."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import torch
from datasets import Dataset

from modeling_ast import ASTConfig
from modeling_ast.conversion import checkpoint_layout
from modeling_ast.data.clip_tables import split_of
from modeling_ast.data.clips import Clip
from modeling_ast.data.examination import ClipSummary, Finding, as_tuple, count_clips
from modeling_ast.data.labels import name_some
from modeling_ast.data.near_duplicates import MAX_CLIPS, find_near_duplicates
from modeling_ast.data.sound_checks import SILENCE
from modeling_ast.loading import is_ast

MAX_DRAWS = 50  # of one clip, an epoch; the rarest of AudioSet's are drawn about 30 times
MAX_IMBALANCE = 10  # clips of the largest class for one of the smallest
MIN_GROUP = 5  # clips a group, and a label, on average: smaller ones coincide by chance
ANY_NAME = r"^(.*[^\W\d].*?)[-_ ]+\d+\.\w+$"
# What names of files usually say of where a clip is from, the first that fits: Speech Commands' speakers, ESC's
# recordings (fold-RECORDING-take-class), and a name in front of a number, as `siteA_0012.wav`.
NAME_GROUPS = {
    "speakers": r"^(.+)_nohash_\d+\.\w+$",
    "recordings": r"^\d-(\d+)-[A-Z]-\d+\.\w+$",
    "what stands before the last number": ANY_NAME,
}
NAMED_SHARE = 0.9  # of the clips that have such a name
MIN_NAMED = 3  # clips a group on average
COINCIDENCE = 0.9  # share of a label's clips in one group, and of the group's in the label


def check_duplicates(clips: Sequence[ClipSummary], label_names: Sequence[str]) -> Iterator[Finding]:
    """The same samples in two splits or folds, or under two labels. Silent clips do not count.

    Args:
        clips: Those that can be used.
        label_names: Of the data.
    """
    groups = {}
    for clip in clips:
        if clip.rms >= SILENCE:
            groups.setdefault(clip.digest, []).append(clip)
    groups = [group for group in groups.values() if len(group) > 1]
    if in_two_folds := [group for group in groups if _spans_folds(group)]:
        yield Finding(
            "error",
            "duplicates",
            f"{_sounds(in_two_folds)} in two folds: what one fold holds out is trained on.",
            "Put all clips of one recording into one fold.",
            _listed(in_two_folds, lambda clip: f"fold {', '.join(sorted(clip.folds)) or 'none'}"),
        )
    if in_two_splits := [group for group in groups if _spans_splits(group) and not _spans_folds(group)]:
        yield Finding(
            "error",
            "duplicates",
            f"{_sounds(in_two_splits)} in two splits: what is held out is trained on, or chosen on.",
            "Take all but one of each out of the data.",
            _listed(in_two_splits, lambda clip: clip.split),
        )
    if contradicting := [group for group in groups if _contradicts_itself(group)]:
        yield Finding(
            "warning",
            "duplicates",
            f"{_sounds(contradicting)} there more than once, with different labels.",
            "Keep the row with the right label or, if all are right, one row with all of them "
            "(problem_type: multi_label_classification).",
            _listed(contradicting, lambda clip: name_some([label_names[label] for label in clip.labels])),
        )
    if rest := [g for g in groups if not (_spans_folds(g) or _spans_splits(g) or _contradicts_itself(g))]:
        seen = f"{_sounds(rest)} more than once in one split{', with the same labels' if label_names else ''}."
        yield Finding("note", "duplicates", seen, clips=_listed(rest, lambda clip: clip.split))
    yield from _check_near_duplicates([clip for clip in clips if clip.rms >= SILENCE and clip.spectrum is not None])


def _check_near_duplicates(clips: Sequence[ClipSummary]) -> Iterator[Finding]:
    """Sounds in two splits or folds that are the same but for gain, a short shift or compression."""
    sides = [clip.folds or frozenset([clip.split]) for clip in clips]
    sizes = Counter(sides)
    if len(sizes) < 2:
        return
    chosen = sorted(range(len(clips)), key=lambda number: sizes[sides[number]])[:MAX_CLIPS]  # small sides are whole
    if len(chosen) < len(clips):
        seen = f"Looked for among {len(chosen):,} of {len(clips):,} clips alone; equal samples, among all."
        yield Finding("note", "near-duplicates", seen)
    alike = find_near_duplicates([clips[number].spectrum for number in chosen], [sides[number] for number in chosen])
    pairs = [[clips[number] for number in sorted((chosen[one], chosen[other]))] for one, other in alike]
    if pairs := [pair for pair in pairs if pair[0].digest != pair[1].digest]:
        yield Finding(
            "warning",
            "near-duplicates",
            f"{len(pairs)} pair(s) of clips in two splits or folds are one sound, at another gain, a little shifted "
            "or compressed: what is held out is trained on.",
            "Listen to them; take one of each out of the data, or put both into one split or fold.",
            _listed(pairs, lambda clip: ", ".join(sorted(clip.folds)) or clip.split),
        )


def _spans_folds(group: Sequence[ClipSummary]) -> bool:
    return len(frozenset().union(*(clip.folds for clip in group))) > 1


def _spans_splits(group: Sequence[ClipSummary]) -> bool:
    return len({clip.split for clip in group}) > 1


def _contradicts_itself(group: Sequence[ClipSummary]) -> bool:
    return len({frozenset(clip.labels) for clip in group}) > 1


def _listed(groups: Sequence[Sequence[ClipSummary]], what) -> tuple[str, ...]:
    """Each group of equal clips in one line."""
    return tuple(" = ".join(f"{clip.name} ({what(clip)})" for clip in group) for group in groups)


def _sounds(groups: Sequence) -> str:
    return "1 sound stands" if len(groups) == 1 else f"{len(groups)} sounds stand"


def check_groups(clips: Sequence[ClipSummary], label_names: Sequence[str]) -> Iterator[Finding]:
    """Groups that folds, folders or parts of the file names suggest, where each label has one of its own.

    Such as a voice a language: a model can learn the group in place of the label. What is only another way to write
    the label is no group, nor are numbers of up to three digits in names, which number labels or clips.

    Args:
        clips: Training clips.
        label_names: Of the data.
    """
    clips = [clip for clip in clips if len(clip.labels) == 1]
    labels = [label_names[clip.labels[0]] for clip in clips]
    sizes, found = Counter(labels), []
    for what, groups in _groupings(clips):
        pairs, group_sizes = Counter(zip(labels, groups)), Counter(groups)
        if len(clips) < MIN_GROUP * max(len(sizes), len(group_sizes)):
            continue
        together = {
            label: group
            for (label, group), count in pairs.items()
            if count >= COINCIDENCE * max(sizes[label], group_sizes[group])
        }
        written_alike = sum(_is_written_alike(group, label) for label, group in together.items())
        if len(together) < max(2, len(sizes) / 2) or 2 * written_alike >= len(together) or together in found:
            continue
        found.append(together)
        yield Finding(
            "warning",
            "groups",
            f"{what} tell {len(together)} of {len(sizes)} labels in training: "
            f"{name_some([f'{group} for {label}' for label, group in sorted(together.items())])}. If these are "
            "voices, places or devices, a model can learn them in place of the labels, and held-out clips of the same "
            "ones do not show it.",
            "Get clips of each label from several of them, and hold out whole ones: a column of them is a "
            "fold_column_name, one of them an eval_fold.",
        )


def _groupings(clips: Sequence[ClipSummary]) -> Iterator[tuple[str, list[str]]]:
    """What says to which group a clip may belong, and the group of each."""
    if clips and all(len(clip.folds) == 1 for clip in clips):
        yield "The folds", [next(iter(clip.folds)) for clip in clips]
    paths = [PurePath(clip.name) for clip in clips]
    depth = min((len(path.parts) for path in paths), default=1)
    for above in range(1, min(depth, 4)):  # the folder, the one that it is in, and that one's
        yield "The folders", [path.parts[-1 - above] for path in paths]
    parts = [[part for part in re.split(r"[\W_]+", path.stem) if part] for path in paths]
    same_number = len(set(map(len, parts))) == 1
    for place in range(len(parts[0]) if same_number else min(map(len, parts), default=0) and 1):
        groups = [each[place] for each in parts]
        if all(re.fullmatch(r"\d{1,3}|.", group) for group in groups):
            continue
        yield f"The file names, in part {place + 1}," if place else "The first parts of the file names", groups
    heads = [re.match(r"[^\W\d_]{2,}", path.stem) for path in paths]
    if heads and all(heads):
        yield "The letters that file names begin with", [head[0] for head in heads]


def check_divided_groups(
    clips: Sequence[ClipSummary], label_names: Sequence[str], has_groups: bool
) -> Iterator[Finding]:
    """Groups that file names suggest, of which both training and held-out clips have some.

    Names of no known form have to suggest them clearly: three clips a group, and half of what is held out.

    Args:
        clips: Of all splits.
        label_names: Of the data.
        has_groups: Whether the recipe says what the groups are, which no split divides then.
    """
    for what, pattern in () if has_groups else NAME_GROUPS.items():
        found = [re.search(pattern, PurePath(clip.name).name) for clip in clips]
        grouped = [(clip, match[1]) for clip, match in zip(clips, found) if match and split_of(match[1]) is None]
        if len(grouped) < NAMED_SHARE * len(clips):
            continue
        of_split, labels = {}, {}
        for clip, group in grouped:
            of_split.setdefault("train" if clip.split == "train" else "held out", Counter())[group] += 1
            labels.setdefault(group, set()).update(label_names[label] for label in clip.labels)
        train, held_out = (of_split.get(side, Counter()) for side in ("train", "held out"))
        sizes = train + held_out
        divided = [group for group in held_out if group in train]
        count = sum(held_out[group] for group in divided)
        is_clear = len(grouped) >= MIN_NAMED * len(sizes) and 2 * count >= held_out.total()
        if len(sizes) < 2 or not divided or (pattern == ANY_NAME and not is_clear):
            continue
        if all(len(names) == 1 and _is_written_alike(group, *names) for group, names in labels.items()):
            continue  # the label once more
        yield Finding(
            "warning",
            "groups",
            f"{count} of {held_out.total()} held-out clips are of a group ({what}, by the names of files) that trains "
            f"too: {name_some(sorted(divided))}. What is measured on them says little about others.",
            f"group_pattern: {pattern}    # if these are voices, places or recordings, for modeling-ast folds",
        )
        return


def _is_written_alike(group: str, label: str) -> bool:
    """Whether one is the other, a part of it, or its letters in short, as `hh` of hihat."""
    group, label = _plain(group), _plain(label)
    if group == label or (min(len(group), len(label)) > 1 and (group in label or label in group)):
        return True
    letters = iter(label)
    return group[:1] == label[:1] and all(letter in letters for letter in group)


def check_spelling(label_names: Sequence[str]) -> Iterator[Finding]:
    """Labels that differ by blanks or case alone."""
    alike = {}
    for name in label_names:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if alike := [names for names in alike.values() if len(names) > 1]:
        each = name_some([" and ".join(map(repr, names)) for names in alike])
        yield Finding(
            "warning",
            "labels",
            f"Several labels differ by blanks or case alone: {each}.",
            "Write them alike in the data, if they mean the same.",
        )


def read_labels(rows: Dataset) -> list[tuple[int, ...]]:
    """The labels of each clip, without its sound."""
    return [as_tuple(labels) for labels in list(rows.select_columns("labels")["labels"])]


def check_label_counts(
    labels: Mapping[str, Sequence[tuple[int, ...]]], label_names: Sequence[str], is_balanced: bool
) -> Iterator[Finding]:
    """Classes without clips, and classes of very different size.

    Args:
        labels: Of each clip, by split (`train`, `validation`, maybe `test`).
        label_names: Of the data.
        is_balanced: Whether training draws rare classes more often, or weighs them in its loss.
    """
    counts = {split: Counter(label for clip in clips for label in clip) for split, clips in labels.items()}
    for split in labels:
        missing = [name for index, name in enumerate(label_names) if not counts[split][index]]
        if not missing:
            continue
        seen = f"{len(missing)} of {len(label_names)} labels have no clip in {split}: {name_some(missing)}."
        if split == "train":
            mend = "Get clips of them, or take them out of the label table: the model cannot learn them."
        else:
            mend = f"Move clips of them to {split}: what is measured there says nothing about them."
        yield Finding("warning", "labels", seen, mend)
    sizes = counts["train"].most_common()
    if sizes and not is_balanced and sizes[0][1] >= MAX_IMBALANCE * sizes[-1][1]:
        (largest, most), (smallest, fewest) = sizes[0], sizes[-1]
        yield Finding(
            "warning",
            "labels",
            f"{label_names[largest]} has {count_clips(most)} for training and {label_names[smallest]} {fewest}: "
            f"{most / fewest:.0f} times as many.",
            "class_balanced_sampling: true    # or class_weights: balanced",
        )
    if unlabelled := sum(not clip for clips in labels.values() for clip in clips):
        yield Finding("note", "labels", f"Without any label: {count_clips(unlabelled)}.")


def read_model_labels(name: str) -> list[str] | None:
    """Label names of the model to start from, in the order of its outputs, as `check_label_names` takes them."""
    if is_ast(name):
        return list(ASTConfig.from_pretrained(name).id2label.values())
    layout = checkpoint_layout(name) if Path(name).is_file() else None
    return [] if layout and layout.has_head else None


def check_label_names(
    label_names: Sequence[str], model_label_names: Sequence[str] | None, model: str, is_training: bool = True
) -> Iterator[Finding]:
    """The labels of the data and their order against those of the model that the run starts from.

    Args:
        label_names: Of the data, in its order.
        model_label_names: Of the model, in the order of its outputs; empty where its weights do not name them,
            `None` where they have no head to keep.
        model: Its name.
        is_training: Whether a fresh head would be trained.
    """
    if model_label_names is None or list(label_names) == list(model_label_names):
        return
    ours, theirs = set(label_names), set(model_label_names)
    if ours == theirs:
        first = next(i for i, (own, other) in enumerate(zip(label_names, model_label_names)) if own != other)
        yield Finding(
            "note",
            "label order",
            f"{model} has the same {len(theirs)} labels in another order: output {first} is "
            f"{model_label_names[first]!r} there and {label_names[first]!r} here. The head is kept, its outputs "
            "change places.",
        )
        return
    fate = "Its head is dropped and a fresh one trained" if is_training else "It cannot be evaluated here"
    level = "warning" if is_training else "error"
    mend = None
    if not theirs:
        level = "note" if is_training else level
        seen = f"{model} has no label names."
        mend = f"modeling-ast convert {model} FOLDER --labels CSV    # keeps a head of the same labels"
    elif all(re.fullmatch(r"LABEL_\d+", name) for name in theirs):
        seen = f"{model} has {len(theirs)} outputs without names, the data {len(label_names)} labels."
        if len(theirs) == len(label_names):
            mend = "Write the names into the model's id2label (config.json) if its outputs mean these labels."
        elif is_training:
            level = "note"
    else:
        seen = (
            f"{model} has other labels: {len(ours & theirs)} of the data's {len(ours)} are among its {len(theirs)}; "
            f"missing there: {name_some(sorted(ours - theirs))}; missing here: {name_some(sorted(theirs - ours))}."
        )
        alike = {_plain(name) for name in ours} & {_plain(name) for name in theirs}
        if len(alike) < len(ours) / 2 and is_training:  # another task, as in most fine-tuning
            level = "note"
        else:
            mend = "Spell the labels as the model does (label_file: PATH), if they are meant to be the same."
    yield Finding(level, "label names", f"{seen} {fate}.", mend)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def check_sampling_weights(
    weights: torch.Tensor, rows: Dataset, labels: Sequence[tuple[int, ...]], label_names: Sequence[str]
) -> Iterator[Finding]:
    """Class-balanced sampling that draws a few clips or one class all the time.

    Args:
        weights: Of each training clip, as it is drawn by, of shape (clips,).
        rows: The training clips.
        labels: Theirs.
        label_names: Of the data.
    """
    draws = weights * len(weights) / weights.sum()  # expected in an epoch
    often = (draws > MAX_DRAWS).nonzero().flatten().tolist()
    if often:
        first = max(often, key=lambda index: draws[index])
        names = [_name(rows, index) for index in often]
        yield Finding(
            "warning",
            "sampling",
            f"Drawn more than {MAX_DRAWS} times an epoch: {count_clips(often)}. {_name(rows, first)} "
            f"({', '.join(label_names[label] for label in labels[first])}) about {draws[first]:.0f} times; "
            f"its weight is {weights[first] / weights.median():.0f} times the median.",
            "class_balanced_sampling: false    # or get more clips of these labels",
            tuple(f"{name} (about {draws[index]:.0f} times)" for index, name in zip(often, names)),
        )
    shares = torch.zeros(len(label_names), dtype=torch.float64)
    for clip, weight in zip(labels, weights.tolist()):
        for label in set(clip):
            shares[label] += weight
    shares /= weights.sum()
    label = int(shares.argmax())
    if shares[label] > 0.5 and len(label_names) > 3:
        yield Finding(
            "warning",
            "sampling",
            f"{label_names[label]} is among the labels of {shares[label]:.0%} of the draws, balanced as they "
            "are: it goes along with rare labels.",
            f"Get clips of the rare labels without {label_names[label]}, or leave this label out.",
        )


def _name(rows: Dataset, index: int) -> str:
    return Clip(rows[index]["audio"]).name or f"train clip {index}"
