"""moeloom/shape.py: sizes on a command line."""

import pytest

from moeloom.shape import Shape, ShapeError


def test_a_shape_is_a_config():
    shape = Shape.parse("experts=8,topk=2,hidden=64,intermediate=96")
    assert shape == Shape(64, 96, 8, 2, 4)
    config = shape.config()
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (64, 96, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hidden=64", "lacks experts, intermediate, topk; write hidden=2880"),
        ("hidden=64,frob=1", "'frob=1' is no size"),
        ("hidden=x", "'hidden=x' is no size"),
        ("hidden=64,hidden=64", "'hidden=64' is no size"),
        ("hidden=63,intermediate=64,experts=8,topk=2", "hidden is 63; MXFP4 needs a multiple of 32"),
        ("hidden=64,intermediate=64,experts=2,topk=3", "topk is 3, of 2 experts"),
        ("hidden=64,intermediate=64,experts=2,topk=0", "topk is 0"),
    ],
)
def test_refusals(text, says):
    with pytest.raises(ShapeError, match=says):
        Shape.parse(text)
