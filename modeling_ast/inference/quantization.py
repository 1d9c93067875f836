"""ONNX graphs with 8-bit weights."""

import os

from modeling_ast.inference.export import require_onnx


def quantize_onnx(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Write a graph with 8-bit weights and integer products in the network's linear layers.

    Weights have a scale for each output, which is as fast as one for all and closer to the model, and use 7 of their 8
    bits. Processors without VNNI (before Intel's Cascade Lake and AMD's Zen 4) add two products of an unsigned and a
    signed byte in 16 bits, which saturate: 2 * 255 * 127 does not fit, 2 * 255 * 64 does. So the products are exact
    on every processor, at the same size and speed.

    Inputs are quantised as they come (dynamic quantisation), so no data are needed. Features, patch convolution,
    positions, attention's own products, norms and scores stay float32.

    Args:
        source: File of the float32 graph.
        target: File to write.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    graph = onnx.load(source)
    # The preparation that onnxruntime would otherwise advise: the exporter has folded constants and inferred shapes.
    add_pre_process_metadata(graph)
    # Initializers need no shape beside them; onnxruntime 1.20 transposes some of them and leaves the old shape.
    weights = {tensor.name for tensor in graph.graph.initializer}
    shapes = [value for value in graph.graph.value_info if value.name not in weights]
    del graph.graph.value_info[:]
    graph.graph.value_info.extend(shapes)
    operators = [node.op_type for node in graph.graph.node]
    features = graph.graph.node[: operators.index("Conv")]  # the patch convolution is the network's first layer
    quantize_dynamic(
        graph,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=[node.name for node in features],
        # Signed, as AMX multiplies them: unsigned ones take twice as long there, and 15 % longer on AVX2.
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
