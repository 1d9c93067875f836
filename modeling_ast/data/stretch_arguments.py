"""Keys of data whose clips are stretches of recordings."""

from dataclasses import dataclass, field, fields
from typing import Literal

STRETCH_INTERVALS = {"window_seconds": "[0.025, inf)", "margin_seconds": "[0, inf)"}  # a frame takes 25 ms


@dataclass(kw_only=True)
class StretchArguments:
    """Where in their recordings clips are, and what is made of long ones; see `modeling_ast.data.stretches`."""

    start_column_name: str = field(
        default="start", metadata={"help": "Column of a list with the seconds at which clips start in their files."}
    )
    end_column_name: str = field(
        default="end", metadata={"help": "Column with the seconds at which they end; empty: with the file."}
    )
    window_seconds: float | None = field(
        default=None,
        metadata={"help": "Cut longer stretches into windows of so many seconds, which cover them, evenly spread."},
    )
    margin_seconds: float = field(
        default=0.0, metadata={"help": "Seconds before and behind each stretch that are read too."}
    )
    background: Literal["ignore", "keep"] = field(
        default="ignore",
        metadata={
            "help": "keep makes clips without labels, of window_seconds each, of what is not annotated in a "
            "recording; for several labels a clip."
        },
    )

    @property
    def given_stretch_keys(self) -> list[str]:
        """Those of these keys that are not at their default."""
        return [each.name for each in fields(StretchArguments) if getattr(self, each.name) != each.default]

    def check_stretch_keys(self) -> None:
        """
        Raises:
            ValueError: Keys that do not go together.
        """
        if self.background == "keep" and self.window_seconds is None:
            raise ValueError("Expected window_seconds with background keep, the length of its clips.")
