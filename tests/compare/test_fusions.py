"""What fuses by each recipe, in child processes; one set of reports is shared by most tests."""

from __future__ import annotations

import sys

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes.backends.ipex_variants import IPEX_VARIANTS
from tests.conftest import make_bert, make_inputs
from tests.isa import NO_AVX512_LOOPS, NO_BF16_KERNELS_IN_IPEX, needs_bf16_kernels_in_ipex

pytestmark = pytest.mark.cpu

IPEX = cpu.get_recipe("ipex-fp32").can_run
needs_ipex = pytest.mark.skipif(not IPEX, reason=f"{cpu.get_recipe('ipex-fp32').why_not}")
# Wide enough for IPEX's kernels of attention.
SIZES = {"hidden_size": 64, "intermediate_size": 128}


def failing(request):
    raise RuntimeError("for a test")


def dying(request):
    import os

    os._exit(3)


@pytest.fixture(scope="module")
def reports():
    recipes = [
        "onednn-graph-fp32",
        "torchscript-fp32",
        "eager-fp32",
        "ipex-fp32",
        # Those that are not traced have no graph to report, only the reason for which they cannot run.
        *(variant for variant in IPEX_VARIANTS.values() if "untraced" not in variant.name or not variant.can_run),
        cpu.Recipe("failing-fp32", "for a test", failing),
        cpu.Recipe("dying-fp32", "for a test", dying),
        cpu.Recipe("lacking-fp32", "for a test", failing, needs=("no-such-package>=1",)),
    ]
    return cpu.fusion_reports(make_bert(**SIZES), make_inputs(2, 16, padding=4), recipes)


NAMES = ("multi-head attention", "concat linear", "linear+add", "linear+gelu", "add+layernorm")
WRITTEN_FOR_AVX512 = ("multi-head attention", "add+layernorm")


def counts(report):
    return tuple(report.counts[name] for name in NAMES)


def test_stock_pytorch_fuses_linear_layers_and_leaves_attention_to_onednn_graph(reports):
    report = reports["onednn-graph-fp32"]

    assert counts(report) == (0, 2, 4, 2, 0)
    assert report.counts["oneDNN Graph partition"] >= 2
    assert report["linear+gelu"].nodes == {"mkldnn::_linear_pointwise": 2}


def test_a_plain_trace_fuses_nothing(reports):
    assert not any(reports["torchscript-fp32"].counts.values())
    assert "torchscript-fp32" in reports.seen


def test_what_does_not_run_says_why(reports):
    assert "failing-fp32" not in reports.seen
    assert "RuntimeError: for a test" in reports["failing-fp32"].reason
    assert reports["dying-fp32"].reason.startswith("crashed: exit code 3")
    assert reports["lacking-fp32"].reason.startswith("lacks: no-such-package")
    assert "no TorchScript graph" in reports["eager-fp32"].reason


def test_the_table_has_a_row_for_each_recipe(reports):
    rows = {row[0]: row for row in reports.table().rows}

    assert list(rows) == list(reports.reports)
    assert rows["onednn-graph-fp32"][1:6] == ("0", "2", "4", "2", "0")
    assert rows["lacking-fp32"][-1].startswith("lacks: ")
    assert "no-such-package" in str(reports)


def test_the_reference_is_there_only_if_asked_for():
    reports = cpu.fusion_reports(make_bert(), make_inputs(), [cpu.Recipe("a-fp32", "x", failing, needs=("nothing-1",))])

    assert list(reports.reports) == ["a-fp32"]


def test_a_name_that_was_not_asked_for_is_an_error(reports):
    with pytest.raises(cpu.InputError, match=r"'ipex-int8'.*onednn-graph-fp32"):
        reports["ipex-int8"]


def test_ipex_stays_out_of_this_process(reports):
    assert "intel_extension_for_pytorch" not in sys.modules


def test_variants_are_not_in_the_registry():
    assert not set(IPEX_VARIANTS) & set(cpu.list_recipes().names)
    for variant in IPEX_VARIANTS.values():
        assert variant.why_not == cpu.get_recipe(f"ipex-{variant.precision}").why_not


@pytest.mark.skipif(IPEX, reason="IPEX can run here")
def test_without_ipex_its_variants_say_why(reports):
    assert all("lacks: " in reports[name].reason for name in ("ipex-fp32", *IPEX_VARIANTS))


@needs_ipex
@pytest.mark.skipif(NO_BF16_KERNELS_IN_IPEX is None, reason="IPEX has BF16 kernels here")
def test_without_bf16_kernels_the_variants_that_need_them_say_so(reports):
    rows = {row[0]: row for row in reports.table().rows}

    for variant in IPEX_VARIANTS.values():
        if variant.precision == "bf16":
            assert rows[variant.name][-1] == f"lacks: {NO_BF16_KERNELS_IN_IPEX}"
            assert not any(rows[variant.name][1:-1])


@needs_ipex
@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("ipex-fp32", (0, 2, 4, 2, 0)),
        ("ipex-eager-attention-fp32", (2, 2, 4, 2, 0)),
        # With no Linear+Add to take it, the Add is left for the layer norm.
        ("ipex-mkl-linear-fp32", (2, 2, 0, 0, 4)),
        pytest.param("ipex-flash-mha-bf16", (2, 2, 4, 2, 0), marks=needs_bf16_kernels_in_ipex),
        pytest.param("ipex-sdpa-bf16", (0, 2, 4, 2, 0), marks=needs_bf16_kernels_in_ipex),
    ],
)
def test_each_choice_fuses_other_things(reports, recipe, expected):
    report = reports[recipe]
    assert tuple(report[name].found for name in NAMES) == expected
    for name, count in zip(NAMES, expected, strict=True):
        if name in WRITTEN_FOR_AVX512 and NO_AVX512_LOOPS and count:
            assert report.counts[name] == 0
            assert report[name].why_not[0] == f"the fast kernel needs AVX512: {NO_AVX512_LOOPS}"
        else:
            assert report.counts[name] == count


@needs_ipex
def test_causes_are_named(reports):
    def cause(recipe, pattern):
        return "; ".join(reports[recipe][pattern].why_not)

    assert "SDPA attention" in cause("ipex-fp32", "multi-head attention")
    assert "MKL linear" in cause("ipex-mkl-linear-fp32", "linear+gelu")
    assert "not frozen" in cause("ipex-not-frozen-fp32", "concat linear")
    assert counts(reports["ipex-not-frozen-fp32"])[1] == 0


@needs_ipex
def test_only_the_scores_of_attention_are_one_operator(reports):
    assert reports["ipex-eager-attention-fp32"]["multi-head attention"].nodes == {"ipex::mha_scores_calc": 2}


@needs_ipex
@needs_bf16_kernels_in_ipex
def test_the_whole_attention_is_one_operator_only_in_the_flash_variant(reports):
    assert reports["ipex-flash-mha-bf16"]["multi-head attention"].nodes == {"ipex::bert_flash_mha": 2}
