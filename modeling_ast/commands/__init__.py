"""The commands, each of which parses, calls and reports.

`modeling-ast COMMAND ...` and `python -m modeling_ast.commands.COMMAND ...` run one.
"""

import sys

from modeling_ast import is_command

if is_command:
    from modeling_ast.commands.command_line import check_torchaudio, tell_fault
    from modeling_ast.commands.command_signals import stop_at_once

    stop_at_once()
    if sys.argv[0] == "-m":  # the file of the command imports all that it needs before anything is called
        sys.excepthook = tell_fault
        check_torchaudio()
