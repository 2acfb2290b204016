"""python -m cpuinfer_helpers generate: what it prints, what it writes, and what it says to wrong requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpuinfer_helpers.__main__ import main
from cpuinfer_helpers.tasks.checkpoints import load_tokenizer
from tests.conftest import write_tokenizer
from tests.generation.encoder_models import make_encoder_model
from tests.generation.models import make_language_model

PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my language model")
    make_language_model("qwen2", eos_token_id=None).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def words(folder: Path, *more: str) -> list[str]:
    return ["generate", "--model", str(folder), "--prompt", PROMPT, "--max-new-tokens", "6", *more]


def test_a_text_is_continued_and_how_is_told(model_folder, capsys):
    assert main(words(model_folder, "--receipt")) == 0
    shown = capsys.readouterr()
    assert PROMPT in shown.out and len(shown.out.rpartition(PROMPT)[2].strip()) >= 3
    assert "fp16, 15 of 15 linear layers" in shown.out
    assert "6 tokens in" in shown.err and "torchscript-fp16w: ScriptModule, frozen, verified" in shown.err


@pytest.mark.parametrize(
    ("name", "settings"),
    [("t5", {"initializer_factor": 1.0}), ("bart", {"init_std": 0.1}), ("marian", {"init_std": 0.1})],
)
def test_what_is_written_of_a_text_is_a_text_of_its_own(tmp_path, name, settings, capsys):
    folder, saved = tmp_path / "reads and writes", tmp_path / "saved"
    folder.mkdir()
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    model = make_encoder_model(name, vocab_size=len(tokenizer), **settings)
    # Otherwise an untrained model goes on with one token, which may be padding.
    model.generation_config.eos_token_id, model.generation_config.suppress_tokens = None, list(range(5))
    model.save_pretrained(folder)
    tokens = model.generate(**_read(tokenizer), max_new_tokens=6, do_sample=False)
    expected = tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert len(expected) >= 6
    assert main(words(folder, "--recipe", "torchscript-fp32", "--receipt", "--save", str(saved))) == 0
    shown = capsys.readouterr()
    assert "float32, 33 of 33 linear layers" in shown.out and PROMPT not in shown.out
    assert "6 tokens in" in shown.err and "torchscript-fp32: ScriptModule, frozen, verified" in shown.err
    assert shown.out.strip().splitlines()[-1] == expected.strip()
    assert main(words(saved)) == 0
    assert capsys.readouterr().out.strip() == expected.strip()


def _read(tokenizer):
    encoded = tokenizer(PROMPT, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def test_what_was_saved_continues_it_in_the_same_way(model_folder, tmp_path, capsys):
    saved = tmp_path / "saved here"
    assert main(words(model_folder, "--recipe", "torchscript-int8", "--save", str(saved))) == 0
    first = capsys.readouterr().out
    assert main(words(saved)) == 0
    assert capsys.readouterr().out == first


def test_several_texts_and_those_of_a_file_are_continued(model_folder, tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_text("a dog sat", encoding="utf-8")
    assert main(words(model_folder, "--prompt", "the river runs", "--prompt-file", str(path))) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in (PROMPT, "the river runs", "a dog sat"))


def test_drafts_change_nothing_and_chance_is_repeatable(model_folder, capsys):
    seen = []
    for more in ([], ["--prompt-lookup", "3"], ["--temperature", "0.8"], ["--temperature", "0.8"]):
        assert main(words(model_folder, *more)) == 0
        seen.append(capsys.readouterr().out)
    assert seen[0] == seen[1] and seen[2] == seen[3]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--model", "no such folder/at/all"], "is no folder here"),
        (["--recipe", "torchscript-fp7"], "there is no recipe 'torchscript-fp7'"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--max-new-tokens", "1000"], "more than the 200"),
        (["--temperature", "-1"], "--temperature is -1"),
        (["--prompt-lookup", "-2"], "--prompt-lookup is -2"),
        (["--prompt", " "], "no text to continue"),
        (["--prompt-file", "no such file"], "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line(model_folder, more, told, capsys):
    assert main(words(model_folder, *more)) == 2
    # The bar of transformers while it loads weights stands before.
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("generate: ") and told in line


def test_weights_that_are_pickled_are_not_loaded(tmp_path, capsys):
    import torch

    model = make_language_model("qwen2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    write_tokenizer(tmp_path)
    assert main(words(tmp_path)) == 2
    assert "safetensors" in capsys.readouterr().err
