"""`modeling-ast train`, as a file for Accelerate's launcher.

accelerate launch scripts/run_audio_classification.py configs/demo.yaml [--key value ...]
"""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["modeling-ast", "train"]
    from modeling_ast.commands.command_line import main

    main()
