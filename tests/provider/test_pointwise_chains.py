"""Chains and trees of nodes that compute element by element, in one launch: the bits of the nodes apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from simulated import run

FLOATS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
OF_ONE = [
    *("Abs", "Neg", "Sign", "Relu", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "Tanh", "Sigmoid", "Softplus", "Sin"),
    *("Cos", "Floor", "Ceil", "Round", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Mish", "Gelu"),
]  # fmt: skip
OF_TWO = ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"]
OF_WHOLE = ["Add", "Sub", "Mul", "Min", "Max"]
COMPARISONS = ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]
LOGIC = ["And", "Or", "Xor"]
WHOLE = {
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}
SHAPES = [["B", 3, 5], ["B", 3, 5], ["B", 3, 5], ["B", 3, 5], [3, 5], [5], [], ["B", 3, 1]]
"""Of inputs: the first of a graph has the whole shape."""


class Graph:
    """Values of known types, and nodes of them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.types: dict[str, int] = {}

    def input(self, elem: int, shape: list[Any]) -> str:
        """Floats of all types go in as float."""
        name = f"in{len(self.inputs)}"
        outside = TensorProto.FLOAT if elem in FLOATS.values() else elem
        self.inputs.append(helper.make_tensor_value_info(name, outside, shape))
        self.types[name] = outside
        return name if elem == outside else self.add("Cast", [name], elem, to=elem)

    def add(self, op: str, inputs: list[str], elem: int, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.types[name] = elem
        return name

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        made = [helper.make_tensor_value_info(name, self.types[name], None) for name in outputs]
        graph = helper.make_graph(self.nodes, "chain", self.inputs, made)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


class RandomGraph(Graph):
    """Nodes of any functions and types over each other and inputs of any shape."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        super().__init__()
        self.rng = rng
        self.main, self.whole = self.one_of(FLOATS.values()), self.one_of(WHOLE.values())
        self.values = [self.input(self.main, SHAPES[0])]
        for elem in (self.main, self.main, self.whole, TensorProto.BOOL):
            self.values.append(self.input(elem, self.one_of(SHAPES)))
        for _ in range(count):
            self.values.append(self.node())

    def one_of(self, things: Iterable[Any]) -> Any:
        all_of_them = list(things)
        return all_of_them[int(self.rng.integers(len(all_of_them)))]

    def of(self, elem: int) -> str:
        """Mostly what was made last."""
        found = [v for v in self.values if self.types[v] == elem]
        if not found:
            return self.cast(self.values[-1], elem)
        return found[-1] if self.rng.random() < 0.6 else str(self.one_of(found))

    def cast(self, value: str, elem: int) -> str:
        return self.add("Cast", [value], elem, to=elem)

    def node(self) -> str:
        main, whole, boolean = self.main, self.whole, TensorProto.BOOL
        either = main if self.rng.random() < 0.5 else whole
        kinds = ["one", "one", "two", "two", "whole", "compare", "logic", "where", "cast", "cast", "many"]
        match self.one_of(kinds):
            case "one":
                return self.add(self.one_of(OF_ONE), [self.of(main)], main)
            case "two":
                return self.add(self.one_of(OF_TWO), [self.of(main), self.of(main)], main)
            case "whole":
                return self.add(self.one_of(OF_WHOLE), [self.of(whole), self.of(whole)], whole)
            case "compare":
                return self.add(self.one_of(COMPARISONS), [self.of(either), self.of(either)], boolean)
            case "logic":
                return self.add(self.one_of(LOGIC), [self.of(boolean), self.of(boolean)], boolean)
            case "where":
                return self.add("Where", [self.of(boolean), self.of(either), self.of(either)], either)
            case "many":
                return self.add("Max", [self.of(main) for _ in range(3)], main)
        return self.cast(self.values[-1], self.one_of([*FLOATS.values(), *WHOLE.values(), boolean]))

    def whole_model(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        return self.model([self.cast(v, TensorProto.FLOAT) for v in self.values if v not in read])


def compared(folder: str, count: int) -> list[dict[str, Any]]:
    """In the child: every model with and without fusion: whether all bits agree, and launches."""
    import gpu
    import numpy as np

    results: list[dict[str, Any]] = []
    with gpu.registered():
        for i in range(count):
            made: dict[str, Any] = {"launches": []}
            outputs = []
            for on in (0, 1):
                rng = np.random.default_rng(i)
                opened = gpu.session(f"{folder}/{i}.onnx", options={"fusion": on})
                feeds = {}
                for name, kind, shape in [(i.name, i.type[7:-1], i.shape) for i in opened.get_inputs()]:
                    x = 3 * rng.standard_normal([2 if isinstance(d, str) else d for d in shape])
                    dtype = np.dtype({"float": "float32"}.get(kind, kind))
                    feeds[name] = np.asarray(np.abs(x) if kind == "uint8" else x, dtype)
                before = gpu.sim.counters()["launches"]
                outputs.append(opened.run(None, feeds))
                made["launches"].append(gpu.sim.counters()["launches"] - before)
                made["placement"] = sorted(gpu.placement(opened))
                del opened
            pairs = zip(*outputs, strict=True)
            made["equal"] = [a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs]
            results.append(made)
    return [*results, {"live": gpu.live()}]


def check(folder: Path, models: list[onnx.ModelProto], **variables: str) -> list[dict[str, Any]]:
    for i, proto in enumerate(models):
        onnx.save(proto, folder / f"{i}.onnx")
    *results, last = run(compared, str(folder), len(models), **variables)
    assert last["live"] == {}
    for i, result in enumerate(results):
        assert result["equal"] and all(result["equal"]), (i, result)
        assert result["placement"] == ["MxortExecutionProvider"]
    return results


def test_random_graphs(tmp_path: Path) -> None:
    """Whatever is put into one launch has the bits that the nodes have apart."""
    rng = np.random.default_rng(1)
    results = check(tmp_path, [RandomGraph(rng, int(rng.integers(2, 24))).whole_model() for _ in range(40)])
    assert sum(r["launches"][1] for r in results) < 0.6 * sum(r["launches"][0] for r in results)


FLOAT = TensorProto.FLOAT


def read_twice(g: Graph) -> list[str]:
    x = g.add("Neg", [g.input(FLOAT, ["B", 3, 5])], FLOAT)
    return [g.add("Mul", [x, g.add("Sigmoid", [x], FLOAT)], FLOAT)]


def read_elsewhere(g: Graph) -> list[str]:
    """By the application, by another operator: both get what a node of its own makes."""
    x = g.add("Neg", [g.input(FLOAT, ["B", 3, 5])], FLOAT)
    z = g.add("Sin", [g.add("Exp", [x], FLOAT)], FLOAT)
    return [x, g.add("Softmax", [z], FLOAT), g.add("Cos", [g.add("Abs", [z], FLOAT)], FLOAT)]


def repeated(g: Graph) -> list[str]:
    """What stands for a whole row is not computed for each of its elements."""
    x, rows = g.input(FLOAT, ["B", 3, 5]), g.input(FLOAT, ["B", 3, 1])
    rows = g.add("Exp", [g.add("Neg", [rows], FLOAT)], FLOAT)
    return [g.add("Sin", [g.add("Mul", [x, rows], FLOAT)], FLOAT)]


def many_steps(g: Graph) -> list[str]:
    x = g.input(FLOAT, ["B", 3, 5])
    for _ in range(20):
        x = g.add("Sin", [x], FLOAT)
    return [x]


def many_inputs(g: Graph) -> list[str]:
    x = g.input(FLOAT, ["B", 3, 5])
    for _ in range(11):
        x = g.add("Sub", [x, g.input(FLOAT, [3, 5])], FLOAT)
    return [x]


def many_results(g: Graph) -> list[str]:
    """Each joins the first and the last, so that all wait."""
    values = [g.add("Sin", [g.input(FLOAT, ["B", 3, 5])], FLOAT) for _ in range(6)]
    while len(values) > 1:
        values = [*values[1:-1], g.add("Sub", [values[0], values[-1]], FLOAT)]
    return values


def many_inputs_of_one_node(g: Graph) -> list[str]:
    return [g.add("Max", [g.input(FLOAT, ["B", 3, 5]) for _ in range(10)], FLOAT)]


CASES = {
    read_twice: (3, 1),
    read_elsewhere: (6, 4),  # Neg, Exp and Sin, Softmax, Abs and Cos
    repeated: (4, 2),
    many_steps: (20, 2),
    many_inputs: (11, 2),
    many_results: (11, 2),
    many_inputs_of_one_node: (9, 9),
}
"""Launches apart and fused. A launch has room for 16 steps, 8 inputs and 4 results at a time."""


def test_what_is_one_launch(tmp_path: Path) -> None:
    models = []
    for build in CASES:
        graph = Graph()
        models.append(graph.model(build(graph)))
    got = check(tmp_path, models)
    assert [tuple(result["launches"]) for result in got] == list(CASES.values())


def test_what_a_subgraph_reads(tmp_path: Path) -> None:
    """A branch of If reads a value of the graph around it, which is no input of the node."""
    graph = Graph()
    x = graph.add("Neg", [graph.input(FLOAT, ["B", 3, 5])], FLOAT)
    y = graph.add("Exp", [x], FLOAT)
    condition = graph.input(TensorProto.BOOL, [])
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, [x], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )
        for name, op in (("then_branch", "Abs"), ("else_branch", "Sin"))
    }
    z = graph.add("If", [condition], FLOAT, **branches)
    onnx.save(graph.model([y, z]), tmp_path / "0.onnx")
    result, last = run(compared, str(tmp_path), 1)
    assert all(result["equal"]) and last["live"] == {}
    assert result["launches"] == [3, 3]
