"""converters/products/convolution.py and channel_last.py: onnxruntime's Conv and BatchNormalization are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import mxort
from same_products import assert_near, assert_same, exact, expressed, model, operators, run, sum_bound

OPTIONS = {"convert_conv": True}


def conv(x="x", w="w", y="y", *, bias="", name="conv", **attributes):
    return helper.make_node("Conv", [x, w, *([bias] if bias else [])], [y], name=name, **attributes)


def random_case(seed):
    """Attributes, operand and weight of a convolution of 1 to 3 axes, whose output is not empty."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    kernel = rng.choice([1, 1, 2, 3, 4], count) if count < 3 else rng.choice([1, 2], count)
    strides = np.where(rng.random(count) < 0.5, kernel, rng.integers(1, 4, count))
    dilations = rng.integers(1, 3, count)
    pads = rng.integers(0, 3, 2 * count) * (rng.random() < 0.5)
    least = (kernel - 1) * dilations + 1
    sizes = np.maximum(1, least - pads[:count] - pads[count:]) + rng.integers(0, 6, count)
    channels, n = int(rng.integers(1, 40)), int(rng.integers(1, 50))
    x = rng.standard_normal((int(rng.integers(1, 3)), channels, *sizes), dtype=np.float32)
    attributes = {"strides": strides.tolist(), "dilations": dilations.tolist(), "pads": pads.tolist()}
    return rng, attributes, x, exact(rng, n, channels, *kernel)


@pytest.mark.parametrize("seed", range(60))
def test_any_convolution(seed):
    rng, attributes, x, w = random_case(seed)
    b = rng.standard_normal(len(w), dtype=np.float32)
    nodes = [conv(bias="b" if seed % 2 else "", **attributes)]
    proto = model(nodes, {"x": x}, {"w": w, "b": b}, static=seed % 3 > 0, opset=11 + seed % 9)
    k = w[0].size
    bytes_now, packed = w.size * 4, len(w) * -(-k // 32) * 17
    if packed >= bytes_now:  # MXFP4 pads K to 32
        with_product, _ = expressed(proto, **OPTIONS)
        assert_near(run(with_product, {"x": x}), run(proto, {"x": x}), sum_bound(k, x, w) + 1e-5)
    else:
        assert_same(proto, {"x": x}, sum_bound(k, x, w) + 1e-5, gone="Conv", **OPTIONS)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(auto_pad):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 32, 9), dtype=np.float32), exact(rng, 16, 32, 4)
    proto = model([conv(auto_pad=auto_pad)], {"x": x}, {"w": w})
    assert_same(proto, {"x": x}, sum_bound(128, x, w), gone="Conv", **OPTIONS)


def test_a_short_time_fourier_transform():
    """A kernel of two strides over one channel: blocks of a stride, not a position each."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((1, 1, 1000), dtype=np.float32), exact(rng, 66, 1, 128)
    proto = model([conv(strides=[64])], {"x": x}, {"w": w}, static=False)
    report = assert_same(proto, {"x": x}, sum_bound(128, x, w), gone="Conv", **OPTIONS)
    assert sum(node.op_type == "Slice" for node in report.model.graph.node) == 4


@pytest.mark.parametrize("biased", [False, True])
def test_a_normalisation_goes_into_the_product(biased):
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 64, 5, 6), dtype=np.float32), exact(rng, 40, 64, 1, 1)
    rows = {name: rng.standard_normal(40, dtype=np.float32) for name in "bsm"}
    rows |= {"f": 2 ** rng.integers(-2, 3, 40).astype(np.float32), "v": np.ones(40, np.float32)}
    norm = helper.make_node("BatchNormalization", ["c", "f", "s", "m", "v"], ["y"], epsilon=0.0)
    proto = model([conv(y="c", bias="b" if biased else ""), norm], {"x": x}, {"w": w, **rows})
    report = assert_same(proto, {"x": x}, 4 * sum_bound(64, x, w), gone="Conv", **OPTIONS)
    assert "BatchNormalization" not in operators(report.model)


def test_the_channels_stay_last_between_products():
    """Two convolutions with an activation between, and a sum of both: two transposes are left, not six."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 64, 5, 6), dtype=np.float32)
    weights = {name: exact(rng, 64, 64, 1, 1) for name in ("u", "v", "w")} | {
        "c": rng.standard_normal((64, 1, 1), dtype=np.float32),
        "half": np.float32(0.5) * np.ones((), np.float32),
    }
    nodes = [
        conv("x", "u", "a", name="one"),
        helper.make_node("Mul", ["a", "half"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["s"]),
        helper.make_node("Add", ["s", "c"], ["t"]),
        conv("t", "v", "b", name="two"),
        helper.make_node("Add", ["b", "a"], ["sum"]),
        helper.make_node("Clip", ["sum", "half"], ["cut"]),
        conv("cut", "w", "y", name="three"),
    ]
    proto = model(nodes, {"x": x}, weights)
    floats, _ = expressed(proto, **OPTIONS)
    turned = [n.input[0] for n in floats.graph.node if n.op_type == "Transpose"]
    assert len(turned) == 2 + 1 + 3  # and those of c and of the weights, which onnxruntime folds
    scale = 6 * 64 * 6 * 64 * 6 * 64  # of the three products, each of K = 64 and weights of 6 at most
    bound = 3 * 2 * 64 * np.finfo(np.float32).eps * scale * np.abs(x).max()
    assert_near(run(floats, {"x": x}), run(proto, {"x": x}), bound)
    report = mxort.convert(proto, min_elements=0, accuracy_level=1, **OPTIONS)
    assert [site.op_type for site in report.converted] == ["Conv"] * 3
    assert_near(run(report.model, {"x": x}, True), run(proto, {"x": x}), bound)


def pointwise_graph(seed):
    """Convolutions and elementwise operators at random, of values that all have one shape; some are outputs."""
    rng = np.random.default_rng(seed)
    values, nodes, weights = ["x"], [], {}
    for i in range(int(rng.integers(3, 14))):
        kind, out = rng.integers(0, 5), f"v{i}"
        first, second = rng.choice(values[-4:], 2)
        if kind == 0:
            weights[f"w{i}"] = exact(rng, 32, 32, 1, 1) / np.float32(256)
            nodes.append(conv(first, f"w{i}", out, name=f"c{i}"))
        elif kind == 1:
            nodes.append(helper.make_node(str(rng.choice(["Sigmoid", "Tanh", "Relu"])), [first], [out]))
        elif kind == 2:
            nodes.append(helper.make_node(str(rng.choice(["Add", "Sub", "Max"])), [first, second], [out]))
        elif kind == 3:
            shape = [(32, 1, 1), (1, 32, 1, 1), (1,), (4, 5), (), (1, 1, 1, 5)][rng.integers(0, 6)]
            weights[f"k{i}"] = rng.standard_normal(shape).astype(np.float32)
            nodes.append(helper.make_node("Mul", [first, f"k{i}"], [out]))
        else:
            nodes.append(helper.make_node("MaxPool", [first], [out], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        values.append(out)
    outputs = list(dict.fromkeys([values[-1], *rng.choice(values[1:], 2)]))
    x = rng.standard_normal((2, 32, 4, 5), dtype=np.float32)
    return model(nodes, {"x": x}, weights, outputs, static=bool(seed % 2)), {"x": x}


@pytest.mark.parametrize("seed", range(60))
def test_any_graph_around_convolutions(seed):
    """Weights are so small that a product is hardly larger than its operand: 14 steps of some 64 eps each."""
    proto, feeds = pointwise_graph(seed)
    floats, reasons = expressed(proto, **OPTIONS)
    assert not reasons and "Conv" not in operators(floats)
    want = run(proto, feeds)
    largest = max(1.0, *(float(np.abs(y).max()) for y in want))
    assert_near(run(floats, feeds), want, 14 * 64 * np.finfo(np.float32).eps * 10 * largest)
    names = [info.name for info in proto.graph.output]
    assert [info.name for info in floats.graph.output] == names


REASONS = {
    "groups": ((32, 16, 1, 1), {"group": 2}, "a convolution of 2 groups has no MX operator"),
    "two axes": ((64, 64, 3, 3), {}, "a convolution of 576 by 64 is faster as it is (convert_conv)"),
    "narrow": ((128, 32, 1, 1), {}, "a convolution of 32 by 128 is faster as it is (convert_conv)"),
    "many taps": (
        (128, 32, 31, 1),
        {},
        "a kernel that meets 31 positions, at most 16 are laid beside each other",
    ),
    "same": (
        (128, 128, 3, 1),
        {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
        "auto_pad SAME_UPPER with strides [2, 1] depends on the size of its input",
    ),
}


@pytest.mark.parametrize(("shape", "attributes", "reason"), REASONS.values(), ids=REASONS)
def test_reasons(shape, attributes, reason):
    rng = np.random.default_rng(5)
    x = np.ones((1, shape[1] * attributes.get("group", 1), 40, 40), np.float32)
    proto = model([conv(**attributes)], {"x": x}, {"w": exact(rng, *shape)})
    report = mxort.convert(proto, min_elements=0)
    assert [site.reason for site in report.skipped] == [reason]
    assert operators(report.model) == ["Conv"]


def test_a_recipe_decides_by_the_operator_that_it_was():
    x = np.ones((1, 128, 4, 4), np.float32)
    proto = model([conv()], {"x": x}, {"w": exact(np.random.default_rng(6), 128, 128, 1, 1)})
    (site,) = mxort.convert(proto, op_types=("MatMul",)).skipped
    assert (site.node, site.reason) == ("conv", "op_types leaves Conv alone")
    (site,) = mxort.convert(proto, exclude=("conv",)).skipped
    assert site.reason == "excluded by pattern 'conv'"
    (site,) = mxort.convert(proto).converted
    assert (site.node, site.op_type, site.K, site.N) == ("conv", "Conv", 128, 128)


def test_half_precision():
    """float16 operands: products are exact to 2^-11 of the result, and so is what onnxruntime's own makes of them."""
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((2, 64, 5, 6)).astype(np.float16), exact(rng, 64, 64, 1, 1).astype(np.float16)
    proto = model([conv()], {"x": x}, {"w": w})
    want = run(proto, {"x": x})
    report = mxort.convert(proto, min_elements=0, accuracy_level=1, **OPTIONS)
    assert len(report.converted) == 1
    assert_near(run(report.model, {"x": x}, True), want, 2 * 2**-11 * float(np.abs(want[0]).max()))


def test_convolutions_are_calibrated():
    """Their operands are sums of a few patterns: what is solved for them errs less than what is rounded."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    patterns = rng.standard_normal((6, 64), dtype=np.float32)
    amounts = rng.standard_normal((4, 2, 6, 9, 9), dtype=np.float32)
    data = [{"x": np.einsum("bphw,pc->bchw", sample, patterns)} for sample in amounts]
    weights = {
        "v": rng.standard_normal((64, 64, 3, 3), dtype=np.float32),
        "w": rng.standard_normal((64, 64, 1, 1), dtype=np.float32),
    }
    nodes = [
        conv("x", "v", "h", name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        conv("r", "w", "y", name="two"),
    ]
    report = mxort.convert(model(nodes, data[0], weights), calibration=data, **OPTIONS)
    assert [(site.node, site.op_type, site.algorithm) for site in report.converted] == [
        ("one", "Conv", "mr-gptq"),
        ("two", "Conv", "mr-gptq"),
    ]
    assert report.converted[0].gain_db > 3
