"""The Audio Spectrogram Transformer as a native citizen of Hugging Face Transformers.

Importing this package registers its classes for `model_type` "audio-spectrogram-transformer": in this process
`AutoModelForAudioClassification.from_pretrained` and its siblings then give them instead of Transformers' own.
"""

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# The process of a command answers --help and Ctrl-C before it spends seconds on importing: in it, and nowhere else,
# what is below waits until it is asked for.
is_command = PurePath(sys.argv[0]).stem == "modeling-ast" or any(
    flag == "-m" and name.startswith("modeling_ast.commands")
    for flag, name in zip(sys.orig_argv[:-1], sys.orig_argv[1:], strict=True)
)

if TYPE_CHECKING or not is_command:
    from .auto_classes import *  # noqa: F403
    from .auto_classes import __all__ as __all__
else:

    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.auto_classes"), name)
