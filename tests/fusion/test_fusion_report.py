"""What the report says of small models on stock PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers import graph
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.fusion import FusionReport, fusion_report
from cpuinfer_helpers.saving.plain import read, write

Inputs = dict[str, torch.Tensor]
PARTITION = "oneDNN Graph partition"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def traced(model: torch.nn.Module, inputs: Inputs, *, freeze: bool = True) -> torch.jit.ScriptModule:
    with torch.no_grad():
        module = torch.jit.trace(model.eval(), example_kwarg_inputs=inputs, strict=False, check_trace=False)
        return torch.jit.freeze(module) if freeze else module


@pytest.fixture
def onednn() -> Iterator[None]:
    with graph.onednn_fusion(jit_autocast=True):
        yield


@pytest.fixture(scope="module")
def plain(bert: torch.nn.Module) -> FusionReport:
    from tests.conftest import make_inputs

    return fusion_report(traced(bert, make_inputs()), make_inputs())


def test_nothing_fuses_in_a_plain_trace(plain: FusionReport) -> None:
    assert plain.counts == {
        "multi-head attention": 0,
        "concat linear": 0,
        "linear+add": 0,
        "linear+gelu": 0,
        "add+layernorm": 0,
        PARTITION: 0,
    }
    assert all(finding.why_not[0] == "no IPEX in this process" for finding in plain.findings[:5])
    assert plain[PARTITION].why_not[0].startswith("oneDNN Graph fusion is off in this process")


def test_sdpa_is_shown_for_information(plain: FusionReport) -> None:
    assert plain.stock_attention == {"aten::scaled_dot_product_attention": 2}
    assert "SDPA attention: 2 x" in plain["multi-head attention"].why_not[1]
    assert any(row[:2] == ("SDPA: one stock operator", "2") for row in plain.table().rows)


def test_operators_that_are_not_there(onednn: None) -> None:
    report = fusion_report(traced(torch.nn.Tanh(), {"input": torch.ones(2, 3)}), {"input": torch.ones(2, 3)})
    assert all(finding.why_not[0].startswith("nothing to fuse: n") for finding in report.findings)


def test_too_few_calls(bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    report = fusion_report(traced(bert, bert_inputs), bert_inputs, calls=1)
    assert report.calls == 1
    assert all(finding.why_not[0].startswith("too few calls: ") for finding in report.findings)


def test_a_trace_that_is_not_frozen(bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    report = fusion_report(traced(bert, bert_inputs, freeze=False), bert_inputs)
    assert any(cause.startswith("not frozen: ") for cause in report["concat linear"].why_not)


def test_casts_of_autocast_hide_nothing(bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    """Traced under autocast, casts stand between the operators that could fuse."""
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        module = traced(bert, bert_inputs)
    report = fusion_report(module, bert_inputs)
    assert [finding.why_not[0] for finding in report.findings[:5]] == ["no IPEX in this process"] * 5
    assert len(report.layer_picture().before) == 12


def test_partitions_count_once(onednn: None, eager_bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    """Each stands there twice: as a partition, and as the fallback behind its guard."""
    module = traced(eager_bert, bert_inputs)
    report = fusion_report(module, bert_inputs)
    found = report[PARTITION]
    nodes = graph.node_counts(graph.executed_graph(module, bert_inputs))
    assert found.fused == found.found == nodes["prim::oneDNNFusionGroup"] > 10
    assert found.events == {"LlgaPartition_*": found.fused}
    assert 0 < found.share < 1
    assert found.why_not == ()
    assert report["linear+gelu"].why_not == ("inside oneDNN Graph partitions instead: 2 hold gelu and linear",)
    assert report["linear+add"].why_not[0].startswith("inside oneDNN Graph partitions instead: 4 hold")
    assert report["multi-head attention"].why_not[0].startswith("inside oneDNN Graph partitions instead: 2 hold")


def test_partitions_whose_guard_refuses_the_shape_are_not_fused(
    onednn: None, eager_bert: torch.nn.Module, bert_inputs: Inputs, new_inputs: Callable[..., Inputs]
) -> None:
    module = traced(eager_bert, bert_inputs)
    fusion_report(module, bert_inputs)
    found = fusion_report(module, new_inputs(2, 20), calls=1)[PARTITION]
    assert (found.fused, found.events, found.share) == (0, {}, 0)
    assert found.found > 10
    assert found.why_not == (
        "found, but the fast kernel did not run: no LlgaPartition_* event",
        "the guard found other shapes and sent the call to the fallback",
    )


class Chosen(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        if bool(n > 0):
            y = torch.ops.mkldnn._linear_pointwise(x, x, self.first.weight, self.first.bias, "add")
        else:
            y = torch.ops.mkldnn._linear_pointwise(x, x, self.second.weight, self.second.bias, "add")
        return torch.tanh(y)


def test_a_branch_that_did_not_run_proves_nothing() -> None:
    """Both branches hold the operator and only one of them runs: which one did is not in the events."""
    module = torch.jit.freeze(torch.jit.script(Chosen().eval()))
    found = fusion_report(module, {"x": torch.ones(2, 8), "n": torch.tensor(1)})["linear+add"]
    assert (found.found, found.fused, found.share) == (2, 0, 0)
    assert found.why_not[0].startswith("mkldnn::_linear_pointwise ran 1 times for more nodes than these 2")


class Halves(torch.nn.Module):
    """A linear layer, GELU, one more with an addition, and three on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)
        self.last = torch.nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.sin(self.down(torch.nn.functional.gelu(self.up(x))) + x)
        first, second = self.last(hidden).split(1, dim=-1)
        return first * second


GELU = (
    """
    graph(%x, %w, %b, %approximate):
      %y = aten::linear(%x, %w, %b)
      %z = aten::gelu(%y, %approximate)
      return (%z)
    """,
    """
    graph(%x, %w, %b, %approximate):
      %attr : str = prim::Constant[value="gelu"]()
      %scalars : Scalar?[] = prim::ListConstruct()
      %y = mkldnn::_linear_pointwise(%x, %w, %b, %attr, %scalars, %approximate)
      return (%y)
    """,
)
ADD = (
    """
    graph(%x, %w, %b, %other, %one):
      %y = aten::linear(%x, %w, %b)
      %z = aten::add(%y, %other, %one)
      return (%z)
    """,
    """
    graph(%x, %w, %b, %other, %one):
      %attr : str = prim::Constant[value="add"]()
      %y = mkldnn::_linear_pointwise(%x, %other, %w, %b, %attr)
      return (%y)
    """,
)
LINEAR = (
    """
    graph(%x, %w, %b):
      %y = aten::linear(%x, %w, %b)
      return (%y)
    """,
    """
    graph(%x, %w, %b):
      %attr : str = prim::Constant[value="none"]()
      %algorithm : str = prim::Constant[value=""]()
      %scalars : Scalar?[] = prim::ListConstruct()
      %y = mkldnn::_linear_pointwise(%x, %w, %b, %attr, %scalars, %algorithm)
      return (%y)
    """,
)
JOINED = (
    LINEAR[0],
    """
    graph(%x, %w, %b):
      %attr : str = prim::Constant[value="none"]()
      %algorithm : str = prim::Constant[value=""]()
      %scalars : Scalar?[] = prim::ListConstruct()
      %dim : int = prim::Constant[value=-1]()
      %size : int = prim::Constant[value=1]()
      %sizes : int[] = prim::ListConstruct(%size, %size)
      %y = mkldnn::_linear_pointwise(%x, %w, %b, %attr, %scalars, %algorithm)
      %parts : Tensor[] = aten::split_with_sizes(%y, %sizes, %dim)
      %z : Tensor, %rest : Tensor = prim::ListUnpack(%parts)
      return (%z)
    """,
)


def rewritten(*rules: tuple[str, str]) -> tuple[torch.jit.ScriptModule, Inputs]:
    inputs = {"x": torch.ones(2, 4, 32)}
    module = traced(Halves(), inputs)
    for rule in rules:
        torch._C._jit_pass_custom_pattern_based_rewrite_graph(*rule, module.graph)
    return module, inputs


def test_stock_operators_that_do_the_work_of_two() -> None:
    """The layer for start and end is split by the model itself, so it is not a joined one."""
    report = fusion_report(*rewritten(GELU, ADD, LINEAR))
    assert {name: count for name, count in report.counts.items() if count} == {"linear+add": 1, "linear+gelu": 1}
    # All three show as the same event; each pattern is given its own.
    assert report["linear+gelu"].events == {"mkldnn::_linear_pointwise": 1}
    total = report["linear+gelu"].share + report["linear+add"].share
    assert 0 < report["linear+gelu"].share < total < 1
    rows = [(row.before, row.pattern) for row in report.layer_picture().rows]
    assert rows[:2] == [(("linear", "gelu"), "linear+gelu"), (("linear", "add"), "linear+add")]


def test_a_stock_linear_that_a_rewrite_splits_is_a_joined_one() -> None:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.joined = torch.nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.joined(x))

    inputs = {"x": torch.ones(2, 8)}
    module = traced(One(), inputs)
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(*JOINED, module.graph)
    assert fusion_report(module, inputs).counts["concat linear"] == 1


def test_reports_survive_json(onednn: None, eager_bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    report = fusion_report(traced(eager_bert, bert_inputs), bert_inputs)
    again = read(FusionReport, json.loads(json.dumps(write(report))), "report")
    assert again == report
    assert str(again) == str(report)


def test_traced_and_prepared_models(bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    model = cpu.trace_model(bert, bert_inputs, verify=False)
    assert fusion_report(model, bert_inputs).stock_attention == {"aten::scaled_dot_product_attention": 2}
    prepared = cpu.prepare("torchscript-fp32", bert, bert_inputs, verify=False)
    assert fusion_report(prepared, bert_inputs).stock_attention == {"aten::scaled_dot_product_attention": 2}


def test_a_model_that_has_no_graph_says_why(bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    report = fusion_report(cpu.prepare("eager-fp32", bert, bert_inputs, verify=False), bert_inputs)
    assert report.reason == "no TorchScript graph: the eager model"
    assert set(report.counts.values()) == {0}
    assert "no TorchScript graph" in str(report)
    with pytest.raises(InputError, match="no graph to show"):
        report.layer_picture()


def test_a_fallback_says_why(bert_inputs: Inputs) -> None:
    class Untraceable(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise ValueError("not this one")
            return x + 1

    inputs = {"x": torch.ones(2, 3)}
    report = fusion_report(cpu.trace_model(Untraceable().eval(), inputs), inputs)
    assert "the eager model answers, because" in report.reason
    assert "not this one" in report.reason


def test_what_cannot_be_used(bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    module = traced(torch.nn.Tanh(), {"input": torch.ones(2)})
    with pytest.raises(InputError, match="BertForQuestionAnswering"):
        fusion_report(bert, bert_inputs)
    with pytest.raises(InputError, match="calls is 0"):
        fusion_report(module, {"input": torch.ones(2)}, calls=0)
    with pytest.raises(InputError, match="input is 3"):
        fusion_report(module, {"input": 3})
    with pytest.raises(InputError, match="no pattern 'linear'"):
        fusion_report(module, {"input": torch.ones(2)})["linear"]
