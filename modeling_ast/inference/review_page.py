"""The page of a review: a stretch to listen to on its spectrogram, and keys that say what is in it."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
import soundfile
from matplotlib import colormaps, image

from modeling_ast import ASTFeatureExtractor, AudioError
from modeling_ast.data.clips import Clip
from modeling_ast.data.labels import DataError, name_some, plain
from modeling_ast.inference.figures import new_figure
from modeling_ast.inference.page_layout import Page
from modeling_ast.inference.review import Question, Review

MAX_BUTTONS = 9  # of labels, by the keys 1 to 9; others are typed
CSS = """
.gradio-container > main {width: 100%; max-width: 900px !important; margin: auto}
#title h1 {margin: 0.2em 0 0; font-size: 1.3em; overflow-wrap: anywhere}
#title p, #question p {margin: 0.3em 0; overflow-wrap: anywhere}
#picture {position: relative; cursor: pointer; background: #000}
#picture img {display: block; width: 100%; height: 220px; object-fit: fill; image-rendering: pixelated}
#cursor {position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #fff}
#sound {width: 100%; margin-top: 0.4em}
#status p {margin: 0; padding: 0.5em 0.8em; border-left: 4px solid var(--secondary-500); border-radius: 6px;
           background: var(--background-fill-secondary); overflow-wrap: anywhere}
#status p.error {border-left-color: #b91c1c}
#curve img {max-width: 100%}
"""
# Keys press the buttons that are shown. The line over the picture follows the player, and a click into it moves both.
HEAD = """
<script>
const buttons = {y: "yes", n: "none", s: "skip", u: "undo", f: "fit", w: "write"};
document.addEventListener("keydown", event => {
  const field = event.target.closest("input, textarea");
  if (field && event.key === "Escape") field.blur();
  if (field || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const sound = document.getElementById("sound");
  if (event.key === " " && sound) {
    event.preventDefault();
    if (sound.paused) { if (sound.ended) sound.currentTime = 0; sound.play(); } else sound.pause();
  } else if (event.key === "o") {
    event.preventDefault();
    document.querySelector("#other input, #other textarea")?.focus();
  } else {
    const name = /^[1-9]$/.test(event.key) ? "label-" + event.key : buttons[event.key.toLowerCase()];
    if (name) { event.preventDefault(); document.getElementById(name)?.click(); }
  }
});
document.addEventListener("click", event => {
  const picture = event.target.closest("#picture"), sound = document.getElementById("sound");
  if (!picture || !sound) return;
  const box = picture.getBoundingClientRect();
  sound.currentTime = (event.clientX - box.left) / box.width * sound.duration;
  sound.play();
});
const follow = () => {
  const sound = document.getElementById("sound"), cursor = document.getElementById("cursor");
  if (sound && cursor && sound.duration) cursor.style.left = 100 * sound.currentTime / sound.duration + "%";
  requestAnimationFrame(follow);
};
follow();
</script>
"""
# What is shown when a key is pressed goes with it: an answer to what came meanwhile is none.
_SHOWN = "(...values) => {values[0] = document.getElementById('question-row')?.dataset.row ?? ''; return values}"
_KEYS = (
    "<small>Keys: y yes, and no other label; n none of all labels; 1 to 9 a label; o another one, or several with "
    "commas between; s skip; u undo; space play. An answer says of every label whether it is there: what is not the "
    "one that is asked for, but may be another, is to be named or skipped.</small>"
)


class ReviewPage:
    """What the page does with a review.

    Args:
        review: Of a store.
        extractor: Of the spectrograms.
        write: Writes what was learnt, and says what.
        fit_every: Answers after which a head is fitted anew.
    """

    def __init__(self, review: Review, extractor: ASTFeatureExtractor, write: Callable[[], str], fit_every: int = 10):
        self.review, self.extractor, self.write, self.fit_every = review, extractor, write, fit_every

    def say(self, shown: str, labels: Sequence[str] | None, request: gr.Request) -> list[Any]:
        """Take an answer: labels, none of them, or (`None`) nothing."""
        visitor = request.session_hash
        try:
            is_answer = self.review.answer(int(shown) if shown.isdecimal() else -1, labels, visitor)
            is_due = labels is not None and self.review.num_labels % self.fit_every == 0
        except (DataError, OSError) as error:
            return self.show(visitor, str(error), is_error=True)
        if not is_answer:
            return self.show(visitor)
        none = f"None of the labels ({name_some(self.review.label_names)})"
        words = "Skipped." if labels is None else f"{' and '.join(labels) or none}: written."
        if is_due:
            words += f" {self._fit()}"
        return self.show(visitor, words)

    def yes(self, shown: str, request: gr.Request) -> list[Any]:
        question = self.review.ask(request.session_hash)
        if question is not None and question.proposal is None:
            return self.show(request.session_hash, "Nothing is proposed yet: say which label it is.", is_error=True)
        return self.say(shown, question and [question.proposal], request)

    def none(self, shown: str, request: gr.Request) -> list[Any]:
        return self.say(shown, [], request)

    def skip(self, shown: str, request: gr.Request) -> list[Any]:
        return self.say(shown, None, request)

    def label(self, shown: str, name: str, request: gr.Request) -> list[Any]:
        names = [" ".join(each.split()) for each in (name or "").split(",")]
        if not (names := list(dict.fromkeys(filter(None, names)))):
            return self.show(request.session_hash)
        return self.say(shown, names, request)

    def press(self, shown: str, words: str, request: gr.Request) -> list[Any]:
        """Of the button of a label, which shows its number and its name."""
        return self.say(shown, [self.review.label_names[int(words.partition(" ")[0]) - 1]], request)

    def undo(self, shown: str, request: gr.Request) -> list[Any]:
        try:
            is_undone = self.review.undo(request.session_hash)
        except (DataError, OSError) as error:
            return self.show(request.session_hash, str(error), is_error=True)
        return self.show(request.session_hash, "Taken back." if is_undone else "Nothing to take back.")

    def fit(self, shown: str, request: gr.Request) -> list[Any]:
        return self.show(request.session_hash, self._fit())

    def save(self, shown: str, request: gr.Request) -> list[Any]:
        try:
            return self.show(request.session_hash, self.write())
        except (DataError, OSError) as error:
            return self.show(request.session_hash, str(error), is_error=True)

    def open(self, request: gr.Request) -> list[Any]:
        return self.show(request.session_hash)

    def leave(self, request: gr.Request) -> None:
        self.review.leave(request.session_hash)

    def _fit(self) -> str:
        try:
            is_fitted = self.review.fit()
        except (DataError, OSError) as error:  # a list that somebody changed, a folder that cannot be written
            return str(error)
        if not is_fitted:
            return "Nothing to fit yet: two labels, or one and stretches without it, tell something apart."
        if not self.review.curve or self.review.curve[-1]["labels"] != self.review.num_labels:
            return "Fitted. What to expect is told once each label is in two recordings."
        point = self.review.curve[-1]
        ends = "" if point["low"] is None else f" ({point['low']:.2f} to {point['high']:.2f})"
        return f"Fitted: expect {point['metric']} {point['value']:.2f}{ends} on stretches chosen like these."

    def show(self, visitor: str, words: str = "", is_error: bool = False) -> list[Any]:
        """What the page shows: question, status, curve, the buttons of labels, and an empty field."""
        question = self.review.ask(visitor)
        try:
            status = f"{self.review.num_labels} stretches labelled. {words}".strip()
        except DataError as error:  # a list that somebody changed
            status, is_error = str(error), True
        names = self.review.label_names[:MAX_BUTTONS]
        buttons = [gr.Button(f"{number} {name}", visible=True) for number, name in enumerate(names, start=1)] + [
            gr.Button(visible=False)
        ] * (MAX_BUTTONS - len(names))
        return [
            "<p>Nothing is left to ask.</p>" if question is None else self.draw(question),
            f'<p class="{"error" if is_error else ""}">{html.escape(plain(status))}</p>',
            draw_curve(self.review.curve),
            *buttons,
            "",
        ]

    def draw(self, question: Question) -> str:
        """A question with its picture and its sound, whole in itself."""
        name = html.escape(plain(f"{question.audio.rpartition('/')[2]}, {question.start:.2f} to {question.end:.2f} s"))
        if question.proposal is None:
            asked = "What is it?"
        else:
            asked = f"Is it <b>{html.escape(plain(question.proposal))}</b>? ({question.probability:.2f})"
        row = f'<p id="question-row" data-row="{question.row}">{asked} <small>{name}, {question.order}</small></p>'
        try:
            clip = Clip({"path": question.audio, "start": question.start, "end": question.end})
            waveform = clip.load(self.extractor.sampling_rate)
        except AudioError as error:
            return f"{row}<p>{html.escape(plain(str(error)))} Skip it.</p>"
        sound, picture = io.BytesIO(), io.BytesIO()
        soundfile.write(sound, waveform.numpy(), self.extractor.sampling_rate, "PCM_16", format="WAV")
        (frames,) = self.extractor.fbank([waveform])  # (frames, mel bins)
        pixels = frames.T.flip(0).numpy()
        quiet = np.percentile(pixels, 5)  # digital silence is far below all else
        image.imsave(picture, pixels, vmin=quiet, cmap=colormaps["magma"], format="png")
        return (
            f'{row}<div id="picture"><img alt="spectrogram" src="{_as_address(picture, "image/png")}">'
            f'<i id="cursor"></i></div><audio id="sound" controls autoplay src="{_as_address(sound, "audio/wav")}">'
            "</audio>"
        )


def _as_address(file: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def draw_curve(curve: Sequence[dict[str, Any]]) -> str:
    """A picture of what was expected after how many labels, with its intervals; nothing before the second point."""
    if len(curve) < 2:
        return ""
    figure = new_figure(6, 2.2)
    axes = figure.subplots()
    labels, value, low, high = (
        np.array([point[name] for point in curve], float) for name in ("labels", "value", "low", "high")
    )
    axes.fill_between(labels, low, high, alpha=0.2)
    axes.plot(labels, value, marker="o")
    axes.set(xlabel="labelled stretches", ylabel=curve[-1]["metric"], ylim=(0, 1.02))
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return f'<img alt="what was gained" src="{_as_address(file, "image/png")}">'


def build_review_page(actions: ReviewPage, title: str) -> gr.Blocks:
    """The page.

    Args:
        actions: What its buttons do.
        title: Of the page.
    """
    may_have_none = actions.review.problem_type == "multi_label_classification"
    with Page(title=f"Review: {title}", analytics_enabled=False) as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1>", elem_id="title")
        shown = gr.Textbox(visible="hidden")
        question = gr.HTML(elem_id="question")
        with gr.Row():
            first = [
                gr.Button(words, elem_id=name, min_width=130, size="md", variant=variant, visible=may_be_said)
                for name, words, variant, may_be_said in (
                    ("yes", "Yes (y)", "primary", True),
                    ("none", "None of the labels (n)", "primary", may_have_none),
                    ("skip", "Skip (s)", "secondary", True),
                    ("undo", "Undo (u)", "secondary", True),
                )
            ]
        with gr.Row():
            labels = [
                gr.Button(visible=False, size="sm", min_width=90, elem_id=f"label-{number + 1}")
                for number in range(MAX_BUTTONS)
            ]
        words = "Another label, or several with commas between (o)"
        other = gr.Textbox(label=words, placeholder="and Enter", max_lines=1, elem_id="other")
        status = gr.HTML(elem_id="status")
        curve = gr.HTML(elem_id="curve")
        with gr.Row():
            last = [
                gr.Button(words, elem_id=name, min_width=120, size="sm")
                for name, words in (("fit", "Fit now (f)"), ("write", "Write the model (w)"))
            ]
        gr.HTML(_KEYS)

        outputs = [question, status, curve, *labels, other]
        options = {"js": _SHOWN, "show_progress": "hidden", "trigger_mode": "multiple", "api_visibility": "private"}
        options |= {"concurrency_limit": 1, "concurrency_id": "review"}
        does = (actions.yes, actions.none, actions.skip, actions.undo, actions.fit, actions.save)
        for button, act in zip((*first, *last), does, strict=True):
            button.click(act, shown, outputs, **options)
        for button in labels:
            button.click(actions.press, [shown, button], outputs, **options)
        # The field is left, so that keys are answers again.
        other.submit(actions.label, [shown, other], outputs, **options).then(
            None, js="() => document.activeElement.blur()", api_visibility="private"
        )
        page.load(actions.open, None, outputs, show_progress="hidden", api_visibility="private")
        page.unload(actions.leave)
    return page.queue(max_size=100)
