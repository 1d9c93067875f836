"""The layout of the page in Gradio: what it shows of a recording, and what its buttons and fields do."""

import html
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
import pandas
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from modeling_ast.audio import AudioError
from modeling_ast.data.labels import plain
from modeling_ast.inference.page import TOP_K, Stopped, TaggedRecording, Tagger
from modeling_ast.loading import ModelError

# Rows that the page shows of the events; the file to download holds all.
MAX_ROWS = 500
PICTURE = {"buttons": ["fullscreen"], "show_label": False, "interactive": False}
COLUMNS = ("label", "start (s)", "end (s)", "score")
# Memory grows with the square of the window, and the number of windows with the inverse of the hop: a page that stands
# still, or ends, is no use to the others who look at it. A model's own window may be longer.
MAX_WINDOW_SECONDS, MIN_HOP_SECONDS = 10.0, 0.02
# Recordings that are tagged at once, in turn, where no other number is given, and requests that wait: the next ones
# are told that the page is busy.
AT_ONCE, MAX_WAITING = 16, 100
WELCOME = "Upload a recording, record one, or choose an example."
# What was uploaded is looked at every hour, and deleted when it is a day old; all of it when the page ends.
DELETE_CACHE = (3600, 86400)
CSS = """
.gradio-container > main {width: 100%; max-width: 1200px !important; margin: auto}
#title h1 {margin: 0.4em 0 0; font-size: 1.6em}
#title p {margin: 0; opacity: 0.7}
#status p {margin: 0; padding: 0.6em 0.9em; border-left: 4px solid var(--secondary-500); border-radius: 6px;
           background: var(--background-fill-secondary); overflow-wrap: anywhere}
#status p.error {border-left-color: #b91c1c}
#tags {overflow-wrap: anywhere}
"""


class Page(gr.Blocks):
    """Gradio's page, which answers in a sentence to what its own form does not send, and fetches no URLs."""

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        """As Gradio's own, which downloads whatever the path of a file names, of any size.

        Raises:
            gr.Error: Values that the form does not have, or a file that was not uploaded.
        """
        files = []
        try:
            traverse(inputs, files.append, is_file_obj_with_meta)
            if not any(is_http_url_like(file["path"]) for file in files):
                return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except (OSError, TypeError, ValueError) as error:
            raise gr.Error("Expected a recording that was uploaded here.", print_exception=False) from error
        raise gr.Error("Expected a recording that was uploaded here, got an address.", print_exception=False)


class Visits:
    """What the page does for its visitors, whose last recording alone is wanted."""

    def __init__(self, tagger: Tagger):
        self.tagger = tagger
        self.wanted: dict[str, Event] = {}  # by visitor: set once what is tagged for them is wanted no more

    def tag(self, path, window, hop, threshold, before, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """What the page shows of a recording, in place of the one before."""
        self.leave(request)
        is_stopped = self.wanted[request.session_hash] = Event()

        def report(share, words="Listening"):
            if is_stopped.is_set():
                raise Stopped
            progress(share, desc=words)

        if before is not None:
            before.forget()
        if path is None:
            return show_nothing(WELCOME)
        tagged = None
        try:
            # Gradio's component for numbers takes an empty one for 0.
            windows = choose_windows(self.tagger, read_setting("window", window), read_setting("hop", hop))
            tagged = self.tagger.tag(path, windows, read_setting("threshold", threshold), report)
            return show(self.tagger, tagged, partial(report, words="Drawing"))
        except (AudioError, ValueError) as error:
            shown = show_nothing(str(error), is_error=True)
        except Stopped:
            shown = gr.skip()  # the page shows what came after it
        finally:
            if self.wanted.get(request.session_hash) is is_stopped:
                del self.wanted[request.session_hash]
        if tagged is not None:
            tagged.forget()
        return shown

    def stop(self, request: gr.Request):
        if request.session_hash not in self.wanted:
            return gr.skip()
        self.leave(request)
        return show_nothing("Stopped.")

    def leave(self, request: gr.Request) -> None:
        if (is_stopped := self.wanted.pop(request.session_hash, None)) is not None:
            is_stopped.set()


def build_page(tagger: Tagger, model_name: str, examples: list[Path], at_once: int = AT_ONCE) -> gr.Blocks:
    """The page.

    Args:
        tagger: The model.
        model_name: In the title.
        examples: Paths of recordings.
        at_once: Recordings that are tagged at once, in turn.

    Raises:
        ModelError: A regression model, which has neither labels nor events.
    """
    config, extractor = tagger.classifier.model.config, tagger.extractor
    if config.problem_type == "regression":
        raise ModelError(f"Expected a model that gives labels, got the regression model {model_name}.")
    own_window = tagger.classifier.window_cutter().length / extractor.sampling_rate
    visits, private = Visits(tagger), {"api_visibility": "private"}
    with Page(title=f"AST: {model_name}", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.HTML(
            f"<h1>{html.escape(model_name)}</h1><p>Audio Spectrogram Transformer of {config.num_labels} labels. "
            f"It takes {own_window:.2f} s at a time, and recordings of up to {tagger.max_seconds / 60:g} "
            "minutes.</p>",
            elem_id="title",
        )
        tagged = gr.State(None, delete_callback=lambda tagged: tagged and tagged.forget())
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                audio, names, settings, again, halt = _place_inputs(own_window, examples)
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(f"<p>{WELCOME}</p>", elem_id="status")
                tags = gr.Label(label="Labels", num_top_classes=TOP_K, visible=False, elem_id="tags")
        with gr.Column(visible=False) as results:
            *drawn, stretch, attention = _place_results()

        outputs = [tagged, status, tags, results, *drawn, stretch, attention]
        inputs = [audio, *settings, tagged]
        names.click(lambda index: str(examples[index]), names, audio, **private)
        progress = {"show_progress_on": [status], "trigger_mode": "multiple"}
        gr.on([audio.change, again.click], visits.tag, inputs, outputs, **progress, **private)
        halt.click(visits.stop, None, outputs, queue=False, show_progress="hidden", **private)
        page.unload(visits.leave)
        stretch.input(partial(draw_attention, tagger), [stretch, tagged], attention, **private)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=at_once)


def _place_inputs(own_window: float, examples: list[Path]) -> tuple[Any, ...]:
    """The recording, the examples, the settings and the two buttons."""
    audio = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label="Recording",
        editable=False,
        buttons=[],
        elem_id="audio",
    )
    names = gr.Dataset(
        components=["textbox"],
        samples=[[path.name] for path in examples],
        type="index",
        label="Examples",
        samples_per_page=8,
        elem_id="examples",
    )
    with gr.Accordion("Settings", open=False), gr.Row():
        settings = [
            gr.Textbox(label="Window (s)", placeholder=f"{own_window:.2f}", min_width=90),
            gr.Textbox(label="Hop (s)", placeholder="2/3 of it", min_width=90),
            gr.Textbox(label="Threshold", placeholder="the model's", min_width=90),
        ]
    with gr.Row():
        buttons = [gr.Button(words, size="sm", min_width=90) for words in ("Tag again", "Stop")]
    return audio, names, settings, *buttons


def _place_results() -> tuple[Any, ...]:
    """The picture of the recording, its events, the files, and the attention in a stretch of it."""
    timeline = gr.Image(alt_text="Spectrogram over scores and events", elem_id="timeline", **PICTURE)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            events = gr.Dataframe(label="Events", interactive=False, max_height=330, elem_id="events")
            with gr.Row():
                files = [
                    gr.DownloadButton(words, size="sm", min_width=140)
                    for words in ("Events for Audacity", "All scores (CSV)")
                ]
        with gr.Column(scale=3, min_width=320):
            stretch = gr.Dropdown([], label="Attention in", elem_id="stretch")
            attention = gr.Image(alt_text="Attention over the spectrogram", elem_id="attention", **PICTURE)
    return timeline, events, *files, stretch, attention


def draw_attention(tagger: Tagger, number: int | None, tagged: TaggedRecording | None) -> Path | None:
    """The picture of a stretch; `None` where there is nothing to look into, or no more."""
    if tagged is None or number is None:
        return None
    try:
        return tagger.draw_attention(tagged, number)
    except (AudioError, OSError):
        if tagged.folder.is_dir():
            raise
        return None  # another recording was chosen while it was drawn, or the visitor is gone


def read_setting(name: str, text: str | None) -> float | None:
    """The number in a field of the page, `None` where it is empty.

    Raises:
        ValueError: No number.
    """
    if not (text := (text or "").strip()):
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError as error:
        raise ValueError(f"Expected a number as {name}, got {text!r}.") from error


def choose_windows(tagger: Tagger, window: float | None, hop: float | None) -> dict[str, Any]:
    """The pipeline's keywords for what the page allows of windows and hops, in seconds; `None` means the default.

    Raises:
        ValueError: Beyond that, or what the model cannot do.
    """
    own_window = tagger.classifier.window_cutter().length / tagger.extractor.sampling_rate
    longest = max(MAX_WINDOW_SECONDS, own_window)
    if window is not None and window > longest:
        raise ValueError(f"Expected a window of at most {longest:g} s, got {window:g} s.")
    if hop is not None and hop < MIN_HOP_SECONDS:
        raise ValueError(f"Expected a hop of at least {MIN_HOP_SECONDS:g} s, got {hop:g} s.")
    return tagger.classifier.window_keywords(window, hop)


def show(tagger: Tagger, tagged: TaggedRecording, report: Callable[[float], Any] = lambda share: None) -> list[Any]:
    """What the page shows of a recording: the values of its outputs. `report` is as in `Tagger.tag`."""
    cutter, rate = tagger.classifier.window_cutter(**tagged.windows), tagger.extractor.sampling_rate
    seconds = tagged.timeline.seconds
    length = f"{seconds:.2f} s" if seconds < 60 else f"{timedelta(seconds=round(seconds))} (h:mm:ss)"
    windows = f"{len(tagged.timeline.scores)} windows of {cutter.length / rate:.2f} s, every {cutter.hop / rate:.2f} s"
    events = f"events: {len(tagged.events)}" if tagged.events else "no score reaches the threshold of an event"
    if len(tagged.events) > MAX_ROWS:
        events += f", of which the first {MAX_ROWS} are listed"
    rows = [[event.label, event.start, event.end, event.score] for event in tagged.events[:MAX_ROWS]]
    choices = [
        (f"{event.label}, {event.start:.2f} to {event.end:.2f} s ({event.score:.2f})", number)
        for number, event in enumerate(tagged.stretches)
    ]
    return [
        tagged,
        f"<p>{html.escape(plain(tagged.path.name))}: {length}, {windows}; {events}.</p>",
        gr.Label({tag["label"]: tag["score"] for tag in tagged.tags}, visible=True),
        gr.Column(visible=True),
        str(tagger.draw_timeline(tagged, report)),
        pandas.DataFrame(rows, columns=COLUMNS).style.format(precision=2),
        *(str(path) for path in tagger.write_files(tagged)),
        gr.Dropdown(choices, value=0),
        str(tagger.draw_attention(tagged, 0)),
    ]


def show_nothing(message: str, is_error: bool = False) -> list[Any]:
    """The same where there is a message alone."""
    status = f'<p class="{"error" if is_error else ""}">{html.escape(plain(message))}</p>'
    return [
        None,
        status,
        gr.Label(None, visible=False),
        gr.Column(visible=False),
        *[None] * 4,
        gr.Dropdown([], value=None),
        None,
    ]
