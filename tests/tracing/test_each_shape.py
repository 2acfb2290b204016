"""One trace for each shape: made when it comes, verified before it answers, saved, refused without the model."""

from __future__ import annotations

import logging

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface import by_shape
from cpuinfer_helpers.saving.folders import MANIFEST
from cpuinfer_helpers.tracing import each_shape
from tests.conftest import MaskDroppedWhenFull

MIB = 2**20


class LengthBakedIn(torch.nn.Module):
    """Divides by the length of the example, for ever."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 3)

    def forward(self, input_ids, attention_mask):
        scores = (input_ids * attention_mask).float().cumsum(dim=1) / int(input_ids.shape[1])
        return {"logits": self.linear(scores[..., None])}


class TokenDecides(torch.nn.Module):
    """What Python does depends on a token: no trace of any shape can hold it."""

    def forward(self, input_ids):
        return input_ids.float() * (2 if int(input_ids[0, 1]) % 2 else 3) / int(input_ids.shape[1])


class ShrinksItsWindow(torch.nn.Module):
    """Changes for good when it sees something small, as Swin does with its windows."""

    def __init__(self):
        super().__init__()
        self.window = 8

    def forward(self, input_ids):
        self.window = min(self.window, int(input_ids.shape[1]))
        return input_ids.float() * self.window


class MeansOverPixels(torch.nn.Module):
    """Takes images of any size, and bakes in that of the example."""

    def forward(self, pixel_values):
        return pixel_values.sum(dim=(1, 2, 3)) / int(pixel_values.shape[-1]) ** 2


class SparseWhenLong(torch.nn.Module):
    """Takes another path far beyond the example's length, as BigBird does."""

    def forward(self, input_ids):
        return input_ids.float() * (1 if input_ids.shape[1] < 100 else 2)


def batch(rows: int = 2, length: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    ids = torch.randint(5, 120, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def traced_each_shape(model: torch.nn.Module | None = None) -> tuple[torch.nn.Module, cpu.TracedModel]:
    model = (model or LengthBakedIn()).eval()
    return model, cpu.trace_model(model, batch(), each_shape=True)


def test_every_shape_gets_a_trace_of_its_own_that_is_right():
    model, traced = traced_each_shape()
    assert traced.traced and traced.shapes == ("2 x 12",)
    for rows, length in ((1, 5), (3, 31), (1, 5)):
        inputs = batch(rows, length)
        inputs["attention_mask"][-1, length // 2 :] = 0
        for _ in range(3):
            # The same operators on the same numbers.
            torch.testing.assert_close(traced(**inputs)["logits"], model(**inputs)["logits"].detach())
    assert traced.shapes == ("2 x 12", "3 x 31", "1 x 5")
    assert traced.receipt.verified and len(traced.receipt.checks) >= 3 * 4


def test_the_receipt_and_the_text_say_plainly_what_it_is():
    _, traced = traced_each_shape()
    traced(**batch(1, 5))
    assert "one trace for each shape, 2 so far (2 x 12, 1 x 5)" in str(traced)
    evidence = traced.receipt.evidence
    assert evidence["traced"] == "one trace for each shape" and evidence["shapes"].startswith("2 of at most 16")
    assert "MB" in evidence["weights of all traces"] and "'shorter'" in evidence["no single trace"]
    assert "one trace for each shape" in str(traced.receipt.table())


def test_a_single_trace_is_preferred_where_it_is_right(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs, each_shape=True)
    assert type(traced) is cpu.TracedModel and "traced" not in traced.receipt.evidence


def test_padding_in_the_example_makes_a_single_trace_right():
    model = MaskDroppedWhenFull().eval()
    traced = cpu.trace_model(model, batch(), each_shape=True)
    assert type(traced) is cpu.TracedModel
    assert traced.receipt.requested["traced with"] == "padding in the example"
    inputs = batch(3, 9)
    for valid in (9, 4):
        inputs["attention_mask"][:, valid:] = 0
        torch.testing.assert_close(traced(**inputs), model(**inputs))


def test_what_no_shape_decides_is_answered_by_the_eager_model(caplog):
    model = TokenDecides().eval()
    inputs = {"input_ids": batch()["input_ids"]}
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        answered = cpu.trace_model(model, inputs, each_shape=True)
    assert not answered.traced and answered.reason in caplog.text
    torch.testing.assert_close(answered(**inputs), model(**inputs))


def test_a_shape_without_a_right_trace_is_answered_by_the_eager_model(caplog, monkeypatch):
    model, traced = traced_each_shape()
    monkeypatch.setattr(model, "forward", model.forward)
    traced._make = lambda tensors: (_ for _ in ()).throw(cpu.TraceError("it differs on 'padding'"))
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        for _ in range(2):
            torch.testing.assert_close(traced(**batch(1, 7))["logits"], model(**batch(1, 7))["logits"].detach())
    assert caplog.text.count("the eager model answers for 1 x 7: it differs on 'padding'") == 1
    assert traced.eager_shapes == {"1 x 7": "it differs on 'padding'"} and traced.shapes == ("2 x 12",)


def test_a_trace_that_fails_later_never_crashes_a_call(caplog):
    model, traced = traced_each_shape()
    shape, (_, trace) = next(iter(traced._traces.items()))

    def fails(inputs):
        raise RuntimeError("shape '[3]' is invalid for input of size 2")

    traced._traces[shape] = (fails, trace)
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        torch.testing.assert_close(traced(**batch())["logits"], model(**batch())["logits"].detach())
    assert "its trace fails on other inputs" in caplog.text


def test_the_trace_that_was_not_called_for_longest_goes_first(monkeypatch):
    monkeypatch.setattr(by_shape, "SHAPES_KEPT", 2)
    _, traced = traced_each_shape()
    traced(**batch(1, 5))
    traced(**batch())
    traced(**batch(1, 6))
    assert traced.shapes == ("2 x 12", "1 x 6")


def test_saved_with_all_its_shapes_and_loaded_without_the_model(tmp_path):
    model, traced = traced_each_shape()
    traced(**batch(1, 5))
    traced.save(tmp_path / "saved")
    loaded = cpu.TracedModel.load(tmp_path / "saved")
    assert loaded.shapes == traced.shapes and "2 so far" in str(loaded)
    for _ in range(3):
        torch.testing.assert_close(loaded(**batch(1, 5))["logits"], model(**batch(1, 5))["logits"].detach())
        torch.testing.assert_close(loaded(**batch())["logits"], model(**batch())["logits"].detach())
    with pytest.raises(cpu.InputError, match="no trace for 4 x 9, only for 1 x 5, 2 x 12"):
        loaded(**batch(4, 9))
    loaded.save(tmp_path / "saved")
    assert set(cpu.TracedModel.load(tmp_path / "saved").shapes) == set(traced.shapes)


def test_a_changed_probe_of_any_shape_is_noticed(tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    from cpuinfer_helpers.saving.folders import sha256

    _, traced = traced_each_shape()
    traced(**batch(1, 5))
    traced.save(tmp_path / "saved")
    probe = tmp_path / "saved" / "probe-01.safetensors"
    tensors = load_file(probe)
    save_file({**tensors, "output.logits": tensors["output.logits"] + 1}, probe)
    manifest = json.loads((tmp_path / "saved" / MANIFEST).read_text())
    manifest["files"][probe.name] = sha256(probe)
    (tmp_path / "saved" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(cpu.ArtifactError, match="logits differs"):
        cpu.TracedModel.load(tmp_path / "saved")


def test_a_model_that_a_call_changes_is_left_as_it_was():
    model = ShrinksItsWindow().eval()
    answered = cpu.trace_model(model, {"input_ids": batch()["input_ids"]}, each_shape=True)
    answered(input_ids=batch(1, 3)["input_ids"])
    assert model.window == 8
    assert (answered(input_ids=torch.ones(1, 12, dtype=torch.long)) == 8).all()


def test_a_path_taken_far_from_the_example_is_noticed():
    reason = cpu.trace_model(SparseWhenLong().eval(), {"input_ids": batch()["input_ids"]}).reason
    assert "'far longer' (1 x 768)" in reason


def test_a_trace_that_is_right_for_one_size_of_image_refuses_others(tmp_path):
    model = MeansOverPixels().eval()
    images = {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    traced = cpu.trace_model(model, images)
    assert traced.traced and "only 3 x 32 x 32" in traced.receipt.evidence["sizes"]
    traced.save(tmp_path / "saved")
    for answer in (traced, cpu.TracedModel.load(tmp_path / "saved")):
        # The same operators in the same order.
        torch.testing.assert_close(answer(pixel_values=images["pixel_values"][:1]), model(images["pixel_values"][:1]))
        with pytest.raises(cpu.InputError, match="each row of pixel_values is 3 x 48 x 48"):
            answer(pixel_values=torch.rand(1, 3, 48, 48))
    each = cpu.trace_model(model, images, each_shape=True)
    larger = torch.rand(1, 3, 48, 48)
    torch.testing.assert_close(each(pixel_values=larger), model(larger))


class LooksUp(LengthBakedIn):
    """Has a table, which not every token is in."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(120, 3)

    def forward(self, input_ids, attention_mask):
        return {"logits": super().forward(input_ids, attention_mask)["logits"] + self.table(input_ids)}


@pytest.mark.parametrize("length", [12, 20])
def test_inputs_that_the_model_refuses_do_not_condemn_their_shape(length, caplog):
    model, traced = traced_each_shape(LooksUp())
    bad = batch(2, length)
    bad["input_ids"] = bad["input_ids"] + 1000
    with pytest.raises(IndexError):
        model(**bad)
    with caplog.at_level(logging.WARNING), pytest.raises((IndexError, cpu.InputError)):
        traced(**bad)
    assert not traced.eager_shapes and not caplog.records
    good = batch(2, length)
    torch.testing.assert_close(traced(**good)["logits"], model(**good)["logits"].detach())
    assert f"2 x {length}" in traced.shapes and not traced.eager_shapes


def test_only_so_many_traces_are_made_and_that_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(by_shape, "TRACES_MADE", 3)
    model, traced = traced_each_shape()
    with caplog.at_level(logging.WARNING):
        for length in (13, 14, 15, 16, 13):
            inputs = batch(2, length)
            torch.testing.assert_close(traced(**inputs)["logits"], model(**inputs)["logits"].detach())
    assert traced.shapes == ("2 x 12", "2 x 14", "2 x 13")
    assert traced.receipt.evidence["traces made"].startswith("3 of at most 3")
    assert "pad to fewer shapes" in traced.receipt.evidence["no more traces"]
    assert sum("pad to fewer shapes" in record.message for record in caplog.records) == 1


def test_no_trace_is_made_that_may_not_fit_into_memory(monkeypatch, caplog):
    model, traced = traced_each_shape()
    # Each takes one mebibyte more; the third may take four, and three are free.
    grown, free = iter(range(0, 100 * MIB, MIB)), iter((100 * MIB, 4 * MIB, 3 * MIB, 100 * MIB))
    monkeypatch.setattr(by_shape, "_resident_bytes", lambda: next(grown))
    monkeypatch.setattr(by_shape, "free_bytes", lambda: next(free))
    with caplog.at_level(logging.WARNING):
        for length in (13, 14, 15, 16):
            inputs = batch(2, length)
            torch.testing.assert_close(traced(**inputs)["logits"], model(**inputs)["logits"].detach())
    assert traced.shapes == ("2 x 12", "2 x 13", "2 x 14") and not traced.eager_shapes
    assert traced.receipt.evidence["no more traces"].startswith(
        "the largest took 1.0 MiB of memory, and 3.0 MiB is free"
    )
    assert sum("pad to fewer and shorter shapes" in record.message for record in caplog.records) == 1


def test_a_good_folder_is_not_replaced_by_one_that_cannot_be_loaded(tmp_path, monkeypatch):
    _, traced = traced_each_shape()
    traced.save(tmp_path / "model")
    before = (tmp_path / "model" / MANIFEST).read_bytes()
    monkeypatch.setattr(each_shape, "write_module", lambda module, path: path.write_bytes(b"not a module"))
    with pytest.raises(cpu.ArtifactError, match="cannot be loaded again, so nothing was saved"):
        traced.save(tmp_path / "model")
    assert (tmp_path / "model" / MANIFEST).read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert cpu.TracedModel.load(tmp_path / "model").shapes == traced.shapes


def test_without_a_trace_left_nothing_is_saved(tmp_path, monkeypatch):
    _, traced = traced_each_shape()
    traced._refuse(next(iter(traced._traces)), "it is wrong")
    with pytest.raises(cpu.ArtifactError, match="no trace to save"):
        traced.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_it_is_saved_whichever_shape_was_called_last(tmp_path):
    model, traced = traced_each_shape()
    for inputs in (batch(1, 5), batch(3, 7), batch()):
        traced(**inputs)
    traced.save(tmp_path / "saved")
    loaded = cpu.TracedModel.load(tmp_path / "saved")
    torch.testing.assert_close(loaded(**batch(3, 7))["logits"], model(**batch(3, 7))["logits"].detach())
