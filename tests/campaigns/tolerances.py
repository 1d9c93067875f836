"""Print how far apart the tests let things be that should be equal: their tolerances, read from their source.

    python tests/campaigns/tolerances.py [WORD ...]

With words, only lines that hold one of them, such as `resume`, `onnx` or `stock`.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
COMPARISONS = ("assert_close", "assert_allclose", "allclose", "close", "approx")
TOLERANCES = {"atol": "absolute", "abs": "absolute", "rtol": "relative", "rel": "relative"}


def main(argv: list[str] | None = None) -> None:
    """Print a line a comparison: its test (or the function that tests share), and its tolerances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="what a line is to hold; all lines if left out")
    words = parser.parse_args(argv).words
    for path in sorted(TESTS.glob("test_*.py")):
        for name, tolerances in dict.fromkeys(read_tolerances(path.read_text(encoding="utf-8"))):
            line = f"{path.name}::{name}: {tolerances}"
            if not words or any(word in line for word in words):
                print(line)


def read_tolerances(source: str) -> Iterator[tuple[str, str]]:
    """The comparisons of a module that name a tolerance other than zero.

    Args:
        source: The module's text.

    Yields:
        The function that a comparison stands in, and its tolerances as written, such as "absolute 1e-5".
    """
    for function in ast.parse(source).body:
        for call in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in COMPARISONS:
                values = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg in TOLERANCES}
                if tolerances := [f"{TOLERANCES[key]} {value}" for key, value in values.items() if value != "0"]:
                    yield function.name, ", ".join(tolerances)


if __name__ == "__main__":
    main()
