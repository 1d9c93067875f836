"""The folder that `evaluate.load` is given; see `modeling_ast.data.metrics.AUDIO_TAGGING_METRIC`."""
