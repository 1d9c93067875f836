"""A page that is open until it is stopped."""

import threading
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from modeling_ast.inference.page_guard import PageGuard

_MEGABYTE = 2**20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")  # this machine alone


def serve(
    page: gr.Blocks,
    host: str,
    port: int,
    accounts: list[tuple[str, str]] | None,
    uploads: Path,
    max_megabytes: int,
    max_total_megabytes: int,
    css: str,
    head: str = "",
    allowed_paths: Sequence[str] = (),
) -> None:
    """Open a page, say where, and wait for a signal.

    Args:
        page: Of Gradio.
        host: Address that it can be opened at.
        port: Likewise.
        accounts: Users and passwords; `None` asks for none, and then a page of this machine alone takes no other name.
        uploads: Folder of what is uploaded.
        max_megabytes: Of an upload.
        max_total_megabytes: Of all uploads.
        css: Of the page.
        head: What else is in its head.
        allowed_paths: Files besides the uploads that can be loaded.

    Raises:
        OSError: The port cannot be opened.
    """
    guard = Middleware(
        PageGuard,
        uploads=uploads,
        max_bytes=max_megabytes * _MEGABYTE,
        max_total_bytes=max_total_megabytes * _MEGABYTE,
        hosts=_LOOPBACK if accounts is None and host.strip("[]") in _LOOPBACK else None,
    )
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        allowed_paths=list(allowed_paths),
        max_file_size=max_megabytes * _MEGABYTE,
        app_kwargs={"middleware": [guard], "openapi_url": None},
        auth=accounts,
        enable_monitoring=False,
        footer_links=[],
        run_history=False,
        css=css,
        head=head,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"The page is at http://{host}:{port}, until Ctrl+C.", flush=True)
    try:
        threading.Event().wait()  # for a signal, which Gradio's own waiting would keep to itself
    finally:
        page.close()
