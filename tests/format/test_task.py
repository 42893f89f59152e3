"""What a graph's metadata says of its outputs."""

import pytest

from foldserve.format.errors import FormatError
from foldserve.format.task import OUTPUTS, Task, read_task


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("columns", [None, ("width", "height")])
def test_what_is_stated_is_read_again(name, columns):
    """Every task, with and without names of columns."""
    task = Task(name, 0.25 if name == "multilabel" else 0.5, columns)
    assert read_task(task.as_metadata(), OUTPUTS[name]) == task


@pytest.mark.parametrize(
    ("metadata", "outputs", "expected"),
    [
        ({}, ["probabilities", "class_id"], "tensors"),
        ({"foldserve.labels": '["a", "b"]'}, ["logits"], "tensors"),
        ({"foldserve.labels": '["a", "b"]'}, ["class_id", "probabilities", "logits"], "classify"),
    ],
)
def test_a_graph_that_states_none_classifies_where_it_can(metadata, outputs, expected):
    """Files of before there were tasks classify by labels, probabilities and class_id; all others give tensors."""
    assert read_task(metadata, outputs).name == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"foldserve.task": "guess"}, "expected one of classify, multilabel, regress, embed, tensors"),
        ({"foldserve.task": "regress"}, "needs the output 'values'"),
        ({"foldserve.task": "multilabel", "foldserve.threshold": "2"}, "expected a number 0 to 1"),
        ({"foldserve.task": "multilabel", "foldserve.threshold": "true"}, "expected a number 0 to 1"),
        ({"foldserve.columns": "width"}, "expected an array of different names"),
        ({"foldserve.columns": '["a", "a"]'}, "expected an array of different names"),
        ({"foldserve.columns": '"ab"'}, "expected an array of different names"),
    ],
)
def test_what_cannot_be_meant_is_refused(metadata, expected):
    """The key, what it holds, and what was expected."""
    with pytest.raises(FormatError, match=expected):
        read_task(metadata, ["probabilities"])
