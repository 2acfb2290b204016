"""One layer, before and after: found without knowing the model."""

from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.fusion import fusion_report
from cpuinfer_helpers.fusion.layer import Operator, align, one_layer
from tests.conftest import make_bert, make_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
LAYER = "linear linear linear matmul scale add softmax matmul linear add layer_norm linear gelu linear add layer_norm"


def operators(text: str, layer: str | None = None) -> list[Operator]:
    return [Operator(label, (label,), layer=layer) for label in text.split()]


def frozen(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    with torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False, check_trace=False))


def test_a_layer_of_bert_in_partitions() -> None:
    model, inputs = make_bert(attention="eager", num_hidden_layers=3), make_inputs()
    with graph.onednn_fusion(jit_autocast=True):
        picture = fusion_report(frozen(model, inputs), inputs).layer_picture()
    assert picture.layers == 3
    # transformers 4 divides the scores, 5 multiplies them.
    assert [{"div": "scale", "mul": "scale"}.get(name, name) for name in picture.before] == LAYER.split()
    assert len(picture.after) == 9
    for row in picture.rows:
        assert row.after == f"oneDNNFusionGroup({', '.join(row.before)})"
        assert row.pattern == "oneDNN Graph partition"


def test_a_layer_of_a_loaded_module_has_no_paths(tmp_path) -> None:
    """A saved module knows no paths of modules; the period of its operators is what is left."""
    model, inputs = make_bert(num_hidden_layers=3), make_inputs()
    torch.jit.save(frozen(model, inputs), str(tmp_path / "module.pt"))
    module = torch.jit.load(str(tmp_path / "module.pt"))
    picture = fusion_report(module, inputs).layer_picture()
    assert picture.layers == 3
    assert " ".join(picture.before) == (
        "linear linear linear scaled_dot_product_attention linear add layer_norm linear gelu linear add layer_norm"
    )
    assert picture.after == picture.before


def test_layers_before_the_norm_begin_with_the_norm() -> None:
    # What comes before the first layer ends like a layer does, so the longest repetition begins there.
    stem, tail = operators("embedding linear add", ""), operators("layer_norm linear", "")
    body = "layer_norm linear softmax add layer_norm linear gelu linear add"
    layers = [operator for number in range(4) for operator in operators(body, f"h.{number}")]
    found, count = one_layer([*stem, *layers, *tail])
    assert count == 4
    assert " ".join(operator.label for operator in found) == body
    assert {operator.layer for operator in found} == {"h.0"}


def test_a_layer_begins_where_its_input_is_used_most() -> None:
    """The first layer has an operator more, so the longest repetition begins in the middle of it."""
    body = [
        Operator("joined", ("linear",) * 3, users=2),
        Operator("scores", ("matmul",), layer="h.0", users=1),
        Operator("linear_add", ("linear", "add"), users=1),
        Operator("layer_norm", ("layer_norm",), layer="h.0", users=1),
    ]
    later = [Operator(each.label, each.parts, layer=each.layer and "h.1", users=each.users) for each in body]
    found, _ = one_layer([body[0], *operators("eq", "h.0"), *body[1:], *later, *later])
    assert [operator.label for operator in found] == ["joined", "scores", "linear_add", "layer_norm"]


def test_nothing_repeats() -> None:
    assert one_layer(operators("linear gelu tanh")) == ((), 0)
    inputs = {"input": torch.ones(2, 4)}
    module = frozen(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval(), inputs)
    picture = fusion_report(module, inputs).layer_picture()
    assert (picture.layers, picture.before, picture.after) == (0, ("linear", "gelu"), ("linear", "gelu"))
    assert "the whole graph" in str(picture)


def test_operators_are_given_what_they_replace() -> None:
    before = operators("linear linear linear matmul div add softmax matmul linear gelu tanh")
    after = [
        Operator("joined", ("linear",) * 3, "concat linear"),
        Operator("scores", ("matmul", "mul", "add", "softmax"), "multi-head attention"),
        *operators("matmul"),
        Operator("linear_gelu", ("linear", "gelu"), "linear+gelu"),
    ]
    rows = align(before, after)
    assert [row.before for row in rows[:3]] == [("linear",) * 3, ("matmul", "div", "add", "softmax"), ("matmul",)]
    assert rows[3].before[:2] == ("linear", "gelu")
    assert [name for row in rows for name in row.before] == [operator.label for operator in before]


def test_an_operator_that_is_gone_is_still_shown() -> None:
    rows = align(operators("tanh"), [])
    assert [(row.before, row.after) for row in rows] == [(("tanh",), "")]


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    inputs = {"input": torch.ones(2, 4)}
    module = frozen(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval(), inputs)
    figure = fusion_report(module, inputs).layer_picture().plot()
    assert [text.get_text() for text in figure.axes[0].texts] == ["linear", "linear", "gelu", "gelu"]
    assert figure._repr_png_().startswith(b"\x89PNG")
