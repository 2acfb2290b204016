from __future__ import annotations

import contextvars
import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cpuinfer_helpers as cpu
from cpuinfer_helpers.processes.transport import read_parcel, read_tensors, write_parcel, write_tensors


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.second = torch.nn.Linear(6, 6)
        self.second.weight = self.first.weight
        whole = torch.arange(24.0).reshape(4, 6)
        self.register_buffer("column", whole[:, 1])
        self.register_buffer("turned", whole.t())
        self.register_buffer("nothing", torch.zeros(0, 3))

    def forward(self, x):
        return self.second(self.first(x)) + self.turned[:, 0]


@pytest.fixture
def sent(tmp_path):
    model = Tied().eval()
    parcel = write_parcel(tmp_path, "content", {"model": model, "half": torch.ones(3, dtype=torch.bfloat16)})
    return model, parcel, read_parcel(parcel)


def test_a_model_arrives_with_its_values_ties_and_views(sent):
    model, _, content = sent
    arrived = content["model"]
    assert arrived.first.weight is arrived.second.weight
    assert arrived.turned.stride() == model.turned.stride()
    assert arrived.column.data_ptr() - arrived.turned.data_ptr() == 4  # one float32 further in the same storage
    for name, tensor in model.state_dict().items():
        assert torch.equal(arrived.state_dict()[name], tensor)
    assert torch.equal(content["half"], torch.ones(3, dtype=torch.bfloat16))
    assert torch.equal(arrived(torch.ones(2, 6)), model(torch.ones(2, 6)))


def test_all_bytes_of_tensors_are_in_one_safetensors_file(sent):
    model, parcel, _ = sent
    stored = load_file(parcel.tensors)
    # The tied weight once, two biases, the buffers' storage once, the empty one, the further tensor.
    assert len(stored) == 6
    first_bytes = [tensor[: 36 * 4].view(torch.float32).tolist() for tensor in stored.values() if len(tensor)]
    assert model.first.weight.flatten().tolist() in first_bytes
    assert parcel.tensor_bytes == 4 * (36 + 6 + 6 + 24) + 2 * 3
    assert Path(parcel.structure).stat().st_size < 10_000


def test_storages_are_aligned_for_vector_instructions(sent):
    assert all(tensor.data_ptr() % 64 == 0 for tensor in sent[2]["model"].first.parameters())


def test_changing_what_arrived_changes_neither_file_nor_original(sent):
    model, parcel, content = sent
    before = model.first.weight.detach().clone()
    with torch.no_grad():
        content["model"].first.weight.zero_()
    assert torch.equal(model.first.weight, before)
    assert torch.equal(read_parcel(parcel)["model"].first.weight, before)


def test_a_changed_file_is_not_unpickled(sent, tmp_path):
    _, parcel, _ = sent
    marker = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return Path.touch, (marker,)

    Path(parcel.structure).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(cpu.ArtifactError, match="sha256"):
        read_parcel(parcel)
    assert not marker.exists()


def test_what_cannot_be_pickled_is_named(tmp_path):
    model = Tied()
    model.lock = threading.Lock()
    with pytest.raises(cpu.InputError, match=r"cannot be sent to another process: TypeError: .*lock"):
        write_parcel(tmp_path, "content", model)


def test_tensors_outside_the_cpus_memory_are_refused(tmp_path):
    with pytest.raises(cpu.InputError, match="on meta, not on the CPU"):
        write_parcel(tmp_path, "content", torch.empty(2, device="meta"))


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    with pytest.raises(cpu.ArtifactError, match="TMPDIR"):
        write_parcel(tmp_path / "missing", "content", torch.ones(1))


def test_answers_may_share_storage_and_the_file_is_gone_after_reading(tmp_path):
    whole, path = torch.arange(12.0).reshape(2, 6), tmp_path / "answers.safetensors"
    groups = [{"a": whole[:, ::2], "b.0": whole}, {"a": whole[0]}]
    write_tensors(path, groups)
    back = read_tensors(path)
    assert not path.exists()
    assert [group.keys() for group in back] == [group.keys() for group in groups]
    assert all(torch.equal(back[n][name], t) for n, group in enumerate(groups) for name, t in group.items())


def test_a_model_with_hooks_that_hold_a_context_variable_arrives(tmp_path):
    variable = contextvars.ContextVar("seen", default=2.0)
    model = torch.nn.Linear(2, 2)
    model.register_forward_hook(lambda module, inputs, output: output * variable.get())
    got = read_parcel(write_parcel(tmp_path, "parcel", {"model": model}))["model"]

    torch.testing.assert_close(
        got(torch.ones(1, 2)), 2 * torch.nn.functional.linear(torch.ones(1, 2), *model.parameters())
    )


def test_a_model_that_has_shown_its_hidden_states_arrives(bert, tmp_path):
    inputs = {"input_ids": torch.arange(5, 13)[None]}
    expected = bert(**inputs, output_hidden_states=True).start_logits
    got = read_parcel(write_parcel(tmp_path, "parcel", {"model": bert}))["model"]

    assert torch.equal(got(**inputs, output_hidden_states=True).start_logits, expected)


def test_modules_that_compute_their_weights_are_sent(tmp_path):
    """The positional convolution of Wav2Vec2 and HuBERT is normalised in this way."""
    model = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(2, 3, 1), dim=2)).eval()
    sent = read_parcel(write_parcel(tmp_path, "content", {"model": model, "again": model}))
    inputs = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    assert sent["model"] is sent["again"]
    assert torch.equal(sent["model"](inputs), model(inputs))
    assert sent["model"].state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        sent["model"][0].parametrizations.weight.original0.mul_(2.0)
    # Twice the norm is twice the weight, exactly; so the weight is still computed.
    assert torch.equal(sent["model"][0].weight, 2 * model[0].weight)
