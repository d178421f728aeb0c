"""Drawings of the autograd graph: what stands in their source, and the picture that Graphviz makes of it."""

import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest

import minigrad as mg
from minigrad import nn

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz, whose program is dot")


def boxes(drawing):
    """The text of each box, by its name, as a list of lines."""
    found = re.findall(r'^    (\w+) \[label="((?:[^"\\]|\\.)*)"', drawing.dot, re.MULTILINE)
    return {name: text.split("\\n") for name, text in found}


def arrows(drawing):
    """(first line of the box that it starts at, that of the one it ends at, its label) of each arrow."""
    title = {name: lines[0] for name, lines in boxes(drawing).items()}
    found = re.findall(r'^    (\w+) -> (\w+)(?: \[label="([^"]*)"\])?', drawing.dot, re.MULTILINE)
    return [(title[a], title[b], label) for a, b, label in found]


def small_network():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, nn.functional.cross_entropy(model(mg.randn(5, 3)), mg.tensor([0, 1, 1, 0, 1]))


def test_a_network_is_drawn_whole():
    model, loss = small_network()
    drawing = mg.draw_graph(loss, params=model)
    assert arrows(drawing) == [
        ("input", "linear", "(5, 3)"),
        ("0.weight", "linear", "(4, 3)"),
        ("0.bias", "linear", "(4,)"),
        ("linear", "relu", "(5, 4)"),
        ("relu", "linear", "(5, 4)"),
        ("2.weight", "linear", "(2, 4)"),
        ("2.bias", "linear", "(2,)"),
        ("linear", "cross_entropy", "(5, 2)"),
        ("input", "cross_entropy", "(5,)"),
        ("cross_entropy", "output", "()"),
    ]
    texts = list(boxes(drawing).values())
    assert ["relu", "(5, 4) float32"] in texts and ["0.weight", "(4, 3) float32"] in texts
    assert ["input", "(5,) int64"] in texts and ["output", "() float32"] in texts
    assert drawing.dot == mg.draw_graph(loss, params=model).dot


def test_names_come_from_a_mapping_or_pairs():
    x, w = mg.randn(2, 3, requires_grad=True), mg.randn(3, requires_grad=True)
    y = x * w
    for params in ({"x": x, 'the "w" of \\': w}, [("x", x), ('the "w" of \\', w)]):
        assert [arrow[0] for arrow in arrows(mg.draw_graph(y, params))] == [
            "x",
            'the \\"w\\" of \\\\',
            "mul",
        ]
    assert [arrow[0] for arrow in arrows(mg.draw_graph(y))] == ["input", "input", "mul"]


def test_numbers_and_options_stand_in_the_box():
    x = mg.randn(4, 6, requires_grad=True)
    texts = list(boxes(mg.draw_graph((2.5 * x[1:3, ..., ::2]).softmax(-1))).values())
    assert ["getitem", "index=(1:3,...,::2)", "(2, 3) float32"] in texts
    assert ["mul", "x=2.5", "(2, 3) float32"] in texts
    assert ["softmax", "dim=1", "(2, 3) float32"] in texts


def test_a_tensor_that_is_used_twice_is_one_box_with_two_arrows():
    x = mg.randn(3, requires_grad=True)
    assert arrows(mg.draw_graph(x * x, {"x": x}))[:2] == [("x", "mul", "(3,)")] * 2


def test_an_op_with_several_outputs():
    x = mg.randn(6, requires_grad=True)
    values, places = mg.sort(x)
    text = next(lines for lines in boxes(mg.draw_graph(values * x)).values() if lines[0] == values.grad_fn)
    assert places.shape == (6,) and "(6,) float32" in text[-1]
    norm = nn.BatchNorm1d(3)
    texts = list(boxes(mg.draw_graph(norm(mg.randn(4, 3)), norm)).values())
    (batch_norm,) = (lines for lines in texts if lines[0] == "batch_norm")
    assert [line for line in batch_norm if line.startswith("[")] == [
        "[0] (4, 3) float32",
        "[1] (1, 3) float32",
        "[2] (1, 3) float32",
    ]


def test_a_graph_of_gradients_is_drawn_too():
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    y = (x**3).sum()
    (gradient,) = mg.autograd.grad(y, x, create_graph=True)
    drawn = arrows(mg.draw_graph([y, gradient], {"x": x}))
    assert [(a, b) for a, b, _ in drawn if b.startswith("output")] == [
        ("sum", "output 0"),
        ("mul", "output 1"),
    ]
    assert [b for a, b, _ in drawn if a == "x"] == ["pow", "pow"]


def test_a_long_graph_needs_no_recursion():
    x = y = mg.ones(1, requires_grad=True)
    for _ in range(5000):
        y = y + 1.0
    assert mg.draw_graph(y, {"x": x}).dot.count("->") == 5001


def test_a_graph_that_was_walked_has_lost_its_shapes_alone():
    model, loss = small_network()
    before = arrows(mg.draw_graph(loss, model))
    loss.backward()
    after = arrows(mg.draw_graph(loss, model))
    assert [arrow[:2] for arrow in after] == [arrow[:2] for arrow in before if arrow[0] != "input"]
    assert ("0.weight", "linear", "(4, 3)") in after and ("linear", "relu", "") in after


def test_what_has_no_graph_is_refused():
    with pytest.raises(ValueError, match="no graph: nothing that it is made of requires a gradient"):
        mg.draw_graph(mg.ones(2) + 1)
    with pytest.raises(TypeError, match="expected a tensor or several, got int"):
        mg.draw_graph([3])


def test_a_leaf_alone():
    x = mg.ones(2, requires_grad=True)
    assert list(boxes(mg.draw_graph(x, {"x": x})).values()) == [["x", "(2,) float32"]]


def test_the_source_needs_no_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    drawing = mg.draw_graph(mg.ones(2, requires_grad=True) * 2)
    drawing.save(tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text() == drawing.dot
    for draw in (drawing.svg, drawing._repr_svg_, lambda: drawing.save(tmp_path / "graph.svg")):
        with pytest.raises(RuntimeError, match=r"'dot' is not installed\. Install it"):
            draw()
    with pytest.raises(ValueError, match=r"as in graph\.svg"):
        drawing.save(tmp_path / "graph")


@needs_dot
def test_graphviz_draws_every_box_and_arrow(tmp_path):
    model, loss = small_network()
    drawing = mg.draw_graph(loss, params=model)
    drawing.save(tmp_path / "graph.svg")
    root = ElementTree.fromstring((tmp_path / "graph.svg").read_text())
    kinds = [element.get("class") for element in root.iter("{http://www.w3.org/2000/svg}g")]
    assert kinds.count("node") == len(boxes(drawing)) and kinds.count("edge") == len(arrows(drawing))
    assert "0.weight" in drawing._repr_svg_()
    drawing.save(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


@needs_dot
def test_a_format_that_graphviz_does_not_know(tmp_path):
    with pytest.raises(RuntimeError, match=r"dot -Tnothing failed: .*nothing"):
        mg.draw_graph(mg.ones(2, requires_grad=True) * 2).save(tmp_path / "graph.nothing")
    assert not (tmp_path / "graph.nothing").exists()
