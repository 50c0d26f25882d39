"""Tidy an exported graph: names that a person can follow, and paddings inside the convolutions that they feed."""

import onnx_ir as ir


def tidy(model: ir.Model) -> None:
    """Apply all clean-ups in place."""
    merge_pads(model.graph)


def merge_pads(graph: ir.Graph) -> int:
    """Move a zero Pad of height and width into the Conv that alone reads it; returns how many.

    ONNX convolutions pad each side by its own amount, so that TensorFlow's asymmetric padding needs no op.
    """
    count = 0
    for pad in [n for n in graph if n.op_type == "Pad"]:
        amounts = _constant_pads(pad)
        uses = list(pad.outputs[0].uses())
        if amounts is None or len(uses) != 1 or pad.outputs[0].is_graph_output():
            continue
        conv, index = uses[0]
        if (
            conv.op_type != "Conv"
            or index != 0
            or ("auto_pad" in conv.attributes and conv.attributes["auto_pad"].as_string() != "NOTSET")
        ):
            continue
        spatial = len(amounts) // 2 - 2
        own = list(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes else [0] * (2 * spatial)
        extra = amounts[2 : 2 + spatial] + amounts[2 + spatial + 2 :]
        conv.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, extra, strict=True)])
        conv.replace_input_with(0, pad.inputs[0])
        graph.remove(pad, safe=True)
        count += 1
    return count


def _constant_pads(pad: ir.Node) -> list[int] | None:
    """The amounts of a zero padding that leaves batch and channels alone, else None."""
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    amounts = ir.convenience.get_const_tensor(pad.inputs[1]) if pad.inputs[1] is not None else None
    if mode != "constant" or amounts is None:
        return None
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if value is not None:
        constant = ir.convenience.get_const_tensor(value)
        if constant is None or float(constant.numpy()) != 0.0:
            return None
    found = [int(a) for a in amounts.numpy()]
    half = len(found) // 2
    if any(found[i] for i in (0, 1, half, half + 1)) or any(a < 0 for a in found):
        return None
    return found
