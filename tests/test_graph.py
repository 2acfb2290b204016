"""What the graph that ran holds, seen on small real models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cpuinfer_helpers import graph

# Six in each of two layers and one for start and end.
LINEAR_LAYERS = 13
Inputs = dict[str, torch.Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def frozen(model: torch.nn.Module, inputs: Inputs) -> torch.jit.ScriptModule:
    with torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False, check_trace=False))


@pytest.fixture(scope="module")
def module(bert: torch.nn.Module) -> torch.jit.ScriptModule:
    from tests.conftest import make_inputs

    return frozen(bert, make_inputs())


def test_counts_of_a_frozen_bert(module: torch.jit.ScriptModule, bert_inputs: Inputs) -> None:
    counts = graph.node_counts(graph.executed_graph(module, bert_inputs))
    assert counts["aten::linear"] == LINEAR_LAYERS
    # The embeddings have one, each layer two.
    assert counts["aten::layer_norm"] == 5
    assert counts["aten::scaled_dot_product_attention"] == 2
    assert counts["aten::gelu"] == 2
    assert "prim::Constant" not in counts
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_eager_attention_shows_as_products_and_softmax(eager_bert: torch.nn.Module, bert_inputs: Inputs) -> None:
    counts = graph.node_counts(graph.executed_graph(frozen(eager_bert, bert_inputs), bert_inputs))
    assert "aten::scaled_dot_product_attention" not in counts
    assert counts["aten::matmul"] == 4
    assert counts["aten::softmax"] == 2


class Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        if bool(n > 0):
            x = torch.sin(x)
            if bool(n > 1):
                x = torch.cos(x)
        else:
            x = torch.tan(x)
        return x


def test_nodes_of_nested_blocks_count() -> None:
    module = torch.jit.script(Branches())
    counts = graph.node_counts(module.graph)
    assert counts["prim::If"] == 2
    assert (counts["aten::sin"], counts["aten::cos"], counts["aten::tan"]) == (1, 1, 1)
    assert not any(node.kind() == "aten::sin" for node in module.graph.nodes())


def test_executed_nodes_know_what_is_certain() -> None:
    module = torch.jit.script(Branches())
    certain = {node.kind: node.certain for node in graph.executed_nodes(module.graph)}
    assert next(node.certain for node in graph.executed_nodes(module.graph) if node.kind == "prim::If")
    assert (certain["aten::sin"], certain["aten::tan"]) == (False, False)


def test_executed_nodes_leave_fallbacks_and_insides_of_partitions_out(eager_bert, bert_inputs: Inputs) -> None:
    with graph.onednn_fusion(jit_autocast=True):
        ran = graph.executed_graph(frozen(eager_bert, bert_inputs), bert_inputs)
    kinds = [node.kind for node in graph.executed_nodes(ran)]
    assert kinds.count("prim::oneDNNFusionGroup") == graph.node_counts(ran)["prim::oneDNNFusionGroup"]
    assert graph.node_counts(ran)["aten::linear"] == LINEAR_LAYERS
    assert "aten::linear" not in kinds
    assert "prim::CallFunction" not in kinds
    assert all(node.certain for node in graph.executed_nodes(ran))


def test_onednn_fusion_is_switched_back() -> None:
    def switches() -> tuple[bool, bool]:
        mode = torch._C._jit_set_autocast_mode(True)
        torch._C._jit_set_autocast_mode(mode)
        return torch.jit.onednn_fusion_enabled(), mode

    before = switches()
    with pytest.raises(KeyError), graph.onednn_fusion(jit_autocast=not before[1]):
        assert switches() == (True, not before[1])
        raise KeyError
    assert switches() == before


def test_nodes_of_fused_subgraphs_count() -> None:
    fused = torch._C.parse_ir(
        """
        graph(%x : Tensor):
          %y : Tensor = aten::tanh(%x)
          %z : Tensor = aten::tanh(%y)
          return (%z)
        """
    )
    torch._C._jit_pass_create_autodiff_subgraphs(fused, 1)
    assert [node.kind() for node in fused.nodes()] == ["prim::DifferentiableGraph"]
    assert graph.node_counts(fused) == {"aten::tanh": 2, "prim::DifferentiableGraph": 1}


def test_executed_graph_is_the_one_after_optimisation() -> None:
    """The executor removes a product with one only when it optimises; the module's own graph still has it."""
    calls: list[int] = []

    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return (x + x) * (x + x)

    module = torch.jit.trace(Doubled(), torch.ones(2), check_trace=False)
    assert graph.node_counts(module.graph)["aten::add"] == 2
    assert graph.node_counts(graph.executed_graph(module, {"x": torch.ones(2)}))["aten::add"] == 1
    assert calls == [1]


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
@pytest.mark.parametrize("freeze", [True, False])
def test_weight_dtypes(
    new_bert: Callable[..., torch.nn.Module], bert_inputs: Inputs, dtype: torch.dtype, name: str, freeze: bool
) -> None:
    model = new_bert().to(dtype)
    for number, parameter in enumerate(model.parameters()):
        # Optimisation keeps one of several equal constants, and new biases are all zero.
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    with torch.no_grad():
        module = torch.jit.trace(model, example_kwarg_inputs=bert_inputs, strict=False, check_trace=False)
        module = torch.jit.freeze(module) if freeze else module
    seen = graph.weight_dtypes(module, graph.executed_graph(module, bert_inputs))
    # Weight and bias of each linear layer and layer norm, and three tables of embeddings.
    assert seen == {name: 2 * LINEAR_LAYERS + 2 * 5 + 3}


def test_weights_cast_after_freezing_stay_what_they_were(new_bert, bert_inputs: Inputs) -> None:
    module = frozen(new_bert(), bert_inputs).to(torch.bfloat16)
    assert set(graph.weight_dtypes(module, graph.executed_graph(module, bert_inputs))) == {"float32"}
    assert graph.linear_dtypes(module, bert_inputs) == {"float32": LINEAR_LAYERS}


def test_linear_layers_of_a_model_in_float32(module: torch.jit.ScriptModule, bert_inputs: Inputs) -> None:
    assert graph.linear_dtypes(module, bert_inputs) == {"float32": LINEAR_LAYERS}


def test_linear_layers_of_a_model_in_bfloat16(new_bert, bert_inputs: Inputs) -> None:
    module = frozen(new_bert().to(torch.bfloat16), bert_inputs)
    assert graph.linear_dtypes(module, bert_inputs) == {"bfloat16": LINEAR_LAYERS}


def test_linear_layers_of_two_dtypes_are_told_apart() -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).to(torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(self.first(x)).to(torch.bfloat16))

    module = frozen(Mixed().eval(), {"x": torch.ones(2, 4)})
    assert graph.linear_dtypes(module, {"x": torch.ones(2, 4)}) == {"float32": 2, "bfloat16": 1}
