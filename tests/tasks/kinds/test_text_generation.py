"""Text generation: its files, how a model's foretelling is scored, and what the shipped checkpoint does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.optimize.search import metric_holds
from cpuinfer_helpers.tasks import Task
from cpuinfer_helpers.tasks.checkpoints import load_tokenizer
from cpuinfer_helpers.tasks.kinds.registry import get_kind
from cpuinfer_helpers.tasks.kinds.text_generation import Continuation, Followed, read_continuations
from cpuinfer_helpers.tasks.metrics import TaskMetric
from tests.tasks.kinds.tiny import save_tiny

RECORD = {"prompt": "The cat sat", "continuation": " on the mat.", "copied": False}
DATA = get_kind("text-generation").data


@pytest.fixture(scope="module")
def task() -> Task:
    return cpu.load_task("text-generation")


def write(folder: Path, *records: Any) -> Path:
    file = folder / "data.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


# Files


def test_records(tmp_path: Path) -> None:
    copied = {"prompt": "Text: Zoë.\nCopy:", "continuation": " Zoë.", "copied": True, "more": 1}
    assert read_continuations(write(tmp_path, RECORD, copied)) == [
        Continuation("The cat sat", " on the mat.", False),
        Continuation("Text: Zoë.\nCopy:", " Zoë.", True),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "must be texts that are not empty"),
        ({"continuation": ""}, "must be texts that are not empty"),
        ({"continuation": 3}, "must be texts that are not empty"),
        ({"copied": 1}, "copied is 1; it must be true or false"),
        ({"copied": True}, "the continuation does not stand in the prompt"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(cpu.DataError, match=rf"data\.json, record 1.*{message}"):
        read_continuations(write(tmp_path, RECORD, {**RECORD, **changes}))


@pytest.mark.parametrize("key", RECORD)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(cpu.DataError, match=f"record 0 has no '{key}'"):
        read_continuations(write(tmp_path, {name: value for name, value in RECORD.items() if name != key}))


def test_of_the_hub_s_rows_paragraphs_are_taken() -> None:
    words = [f"word{number}" for number in range(15)]
    rows = [{"text": text} for text in ("", " = A heading of no fewer than twelve words as it is here = \n", "Short .")]
    found = DATA.source.read([*rows, {"text": f" {' '.join(words)} \n"}])
    assert found == [Continuation(" ".join(words[:5]), " " + " ".join(words[5:]), False)]


# Scores


def test_prompt_and_continuation_are_encoded_apart_and_ended(task: Task) -> None:
    example = Continuation("The cat sat", " on the mat.")
    encoded = DATA.encode(task.tokenizer, [example])
    ids, place = encoded.rows[0]["input_ids"], encoded.places[0]
    assert ids[0] == task.tokenizer.bos_token_id and ids[-1] == task.tokenizer.eos_token_id
    assert task.tokenizer.decode(ids[1 : place.first]) == example.prompt
    assert task.tokenizer.decode(ids[place.first : place.end]) == example.continuation
    assert ids[: place.first] == task.tokenizer(example.prompt)["input_ids"]
    assert encoded.rows[0]["attention_mask"] == [1] * len(ids)


def test_a_text_that_is_too_long_is_cut(task: Task) -> None:
    examples = [Continuation("a " * 5000, " b"), Continuation("a", " b" * 5000)]
    for row, place in zip(*vars(DATA.encode(task.tokenizer, examples)).values(), strict=True):
        assert len(row["input_ids"]) == 384 >= place.end >= place.first
    assert task.evaluate(split="heldout", limit=1).metrics
    cut = replace(task, datasets={"long": examples}).evaluate()
    assert all(math.isfinite(value) for value in cut.metrics.values())


def test_perplexity_is_that_of_transformers_own_loss(task: Task) -> None:
    example = next(example for example in task.dataset if not example.copied)
    row = DATA.encode(task.tokenizer, [example]).rows[0]["input_ids"][:-1]
    with torch.no_grad():
        loss = task.trained_model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss
    own = replace(task, datasets={"one": [example]}).evaluate()
    assert own.metrics["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-4)
    assert "copied" not in own.metrics and f"{own.metrics['perplexity']:.2f}" in str(own)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_at_padding_does_not_count(side: str) -> None:
    logits = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0))
    real = slice(2, None) if side == "left" else slice(0, 3)
    ids, mask = torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64)
    ids[:, real], mask[:, real] = torch.tensor([[4, 5, 6]]), 1
    ((losses, best),) = DATA.kept({"input_ids": ids, "attention_mask": mask}, {"logits": logits})
    expected = torch.nn.functional.cross_entropy(logits[0, real][:-1], torch.tensor([5, 6]), reduction="none")
    assert torch.equal(losses, expected) and torch.equal(best, logits[0, real][:-1].argmax(dim=-1))


def followed(tokens: tuple[int, ...], wanted: tuple[int, ...] = (1, 2), loss: float = 0.0) -> Followed:
    return Followed(tokens, wanted, loss, 4)


def test_copies_count_when_right_to_the_end_and_texts_by_perplexity() -> None:
    examples = [Continuation("", "", copied) for copied in (True, True, False, False)]
    answers = [followed((1, 2), loss=9.0), followed((1, 3)), followed((9, 9), loss=4.0), followed((9, 8), loss=8.0)]
    metrics = DATA.score(examples, answers)
    assert metrics == {"copied": 50.0, "perplexity": pytest.approx(math.exp(1.5))}
    assert DATA.score(examples[:2], answers[:2])["perplexity"] == pytest.approx(math.exp(9 / 8))
    assert DATA.score(examples[2:], answers[2:]) == {"perplexity": pytest.approx(math.exp(1.5))}
    assert [DATA.prediction(answer) for answer in answers[:2]] == [(1, 2), (1, 3)]


@pytest.mark.parametrize(("loss", "perplexity"), [(1e6, math.inf), (math.nan, math.nan)])
def test_a_broken_model_has_a_perplexity_too(loss: float, perplexity: float) -> None:
    seen = DATA.score([Continuation("a", "b")], [followed((1,), loss=loss)])["perplexity"]
    assert seen == perplexity or (math.isnan(seen) and math.isnan(perplexity))


class Flattened(torch.nn.Module):
    """A model whose logits are a share of what they were: the same greedy tokens, less sure."""

    def __init__(self, model: torch.nn.Module, share: float) -> None:
        super().__init__()
        self.model, self.share = model, share

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.share * self.model(**inputs)["logits"]}


def test_a_higher_perplexity_is_worse_for_whoever_takes_more_for_better(task: Task) -> None:
    metric = TaskMetric(task, 8)
    own, worse = (metric(Flattened(task.trained_model, share)) for share in (1.0, 0.5))
    assert own == -task.evaluate(limit=8).metrics["perplexity"] and worse < own < 0
    assert metric_holds(own, own, 0.99) and not metric_holds(worse, own, 0.99)
    better = own + 0.5
    assert metric_holds(better, own, 1.0)
    assert not get_kind("text-classification").data.less_is_better


def test_greedy_tokens_are_compared_between_models_and_nothing_else(task: Task) -> None:
    own, flat = (task.evaluate(Flattened(task.trained_model, share), limit=8) for share in (1.0, 0.5))
    assert own.agreement(flat) == 100.0 and own.metrics["copied"] == flat.metrics["copied"]
    assert json.loads(json.dumps(own.predictions)) == [list(tokens) for tokens in own.predictions]
    other = task.evaluate(Flattened(task.trained_model, -1.0), limit=8)
    assert own.agreement(other) == 0.0 and other.metrics["copied"] == 0.0


# Inputs


def test_prompts_are_padded_on_the_left_of_example_inputs(task: Task) -> None:
    inputs = task.example_inputs
    assert set(inputs) == {"input_ids", "attention_mask"} and inputs["input_ids"].shape == (2, 32)
    assert inputs["attention_mask"].tolist() == [[1] * 32, [0] * 12 + [1] * 20]
    assert inputs["input_ids"][:, -1].ne(task.tokenizer.pad_token_id).all()
    assert task.tokenizer.padding_side == "left"
    assert (task.tokenizer(["a", "a b c"], padding=True)["attention_mask"][0][0]) == 0


def test_a_loaded_model_s_inputs_are_padded_on_the_left(tmp_path: Path) -> None:
    loaded = cpu.load_model(save_tiny("text-generation", tmp_path / "model"))
    assert loaded.task == "text-generation" and loaded.tokenizer.padding_side == "left"
    inputs = loaded.inputs(3)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [32, 20, 20] and inputs["attention_mask"][:, -1].all()
    assert {tuple(loaded.inputs(2, length)["input_ids"].shape) for length in (4, 5, 50)} == {(2, 4), (2, 5), (2, 50)}


def test_without_a_tokenizer_prompts_are_random_tokens(tmp_path: Path) -> None:
    folder = save_tiny("text-generation", tmp_path / "model")
    model = cpu.load_model(folder).model
    inputs = get_kind("text-generation").inputs(get_kind("text-generation"), model, None, 2, None)
    assert inputs["input_ids"].shape == (2, 32) and inputs["attention_mask"].all()


def test_a_tokenizer_without_padding_pads_with_what_ends_a_text(tmp_path: Path, task: Task) -> None:
    from transformers import PreTrainedTokenizerFast

    file = Path(task.tokenizer.name_or_path) / "tokenizer.json"
    bare = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<eos>")
    bare.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, padding_side="left").pad_token == "<eos>"
    assert load_tokenizer(tmp_path).pad_token is None


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertLMHeadModel", "Qwen2ForCausalLM"])
def test_classes_that_tell_the_kind(name: str) -> None:
    assert get_kind("text-generation").is_told_by([name])


@pytest.mark.parametrize("name", ["XLMWithLMHeadModel", "BertForMaskedLM", "BartForConditionalGeneration", "Unheard"])
def test_classes_that_do_not(name: str) -> None:
    assert not get_kind("text-generation").is_told_by([name])


# The models


def generated(model: Any, task: Task, prompts: list[str], **options: Any) -> list[list[int]]:
    """New tokens of each prompt, greedy, up to the one that ends a text."""
    inputs = task.tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=150, **options)
    rows = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    end = task.tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def of_copies(task: Task, count: int) -> list[Continuation]:
    return [example for example in task.dataset if example.copied][:count]


def test_what_counts_as_copied_is_what_generate_writes(task: Task) -> None:
    examples = of_copies(task, 8)
    wrong = [replace(example, continuation=example.continuation[:-1] + "!") for example in examples[:2]]
    examples += wrong
    encoded = DATA.encode(task.tokenizer, examples)
    wanted = [row["input_ids"][place.first :] for row, place in zip(encoded.rows, encoded.places, strict=True)]
    written = generated(task.trained_model, task, [example.prompt for example in examples])
    right = [row == tokens for row, tokens in zip(written, wanted, strict=True)]
    score = replace(task, datasets={"some": examples}).evaluate()
    told = [list(said) == tokens for said, tokens in zip(score.predictions, wanted, strict=True)]
    assert told == right and sum(right) >= 6 and right[-2:] == [False, False]
    assert score.metrics["copied"] == 100.0 * sum(right) / len(right)


def test_padding_on_the_left_changes_nothing_that_is_written(task: Task) -> None:
    prompts = [example.prompt for example in of_copies(task, 4)]
    assert len({len(task.tokenizer(prompt)["input_ids"]) for prompt in prompts}) > 1
    together = generated(task.trained_model, task, prompts)
    assert together == [generated(task.trained_model, task, [prompt])[0] for prompt in prompts]


def test_drafts_that_are_looked_up_in_the_prompt_are_taken(task: Task) -> None:
    """The same tokens in far fewer calls, or the copying task would not be one."""
    prompt = [max(of_copies(task, 20), key=lambda example: len(example.continuation)).prompt]
    calls = []
    handle = task.trained_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        plain = generated(task.trained_model, task, prompt)
        one_by_one = len(calls)
        calls.clear()
        drafted = generated(task.trained_model, task, prompt, prompt_lookup_num_tokens=8)
    finally:
        handle.remove()
    assert drafted == plain and one_by_one == len(plain[0])
    assert len(calls) < one_by_one / 3


def test_the_model_that_is_timed_takes_the_small_one_s_tokens(task: Task) -> None:
    config = task.model.config
    assert type(config).__name__ == "GPT2Config" and len(task.tokenizer) <= config.vocab_size == 50257
    assert sum(parameter.numel() for parameter in task.model.parameters()) == 124_439_808
    with torch.no_grad():
        tokens = task.model.generate(**task.example_inputs, do_sample=False, max_new_tokens=2)
    assert tokens.shape == (2, 34) and isinstance(task.tokenizer.decode(tokens[0]), str)


@pytest.mark.parametrize("attribute", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_model_and_tokenizer_agree_about_special_tokens(task: Task, attribute: str) -> None:
    assert getattr(task.trained_model.config, attribute) == getattr(task.tokenizer, attribute)
    assert getattr(task.trained_model.generation_config, attribute) == getattr(task.tokenizer, attribute)


def test_the_small_model_is_built_as_large_ones_are(task: Task) -> None:
    config = task.trained_model.config
    assert config.num_key_value_heads < config.num_attention_heads and config.tie_word_embeddings
    assert 3e6 <= sum(parameter.numel() for parameter in task.trained_model.parameters()) <= 6e6
    assert config.max_position_embeddings >= 512 and task.tokenizer.model_max_length == config.max_position_embeddings


ANY_TEXT = 'Zoë: “naïve” — 3.5% of 1,024 €\n\tx = {"a": [1]}  # 東京 🙂'


def test_texts_are_cut_alike_on_every_version_of_transformers(task: Task) -> None:
    """Version 5 has a class of its own for the tokenizers of each architecture, and takes less from their files."""
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(str(Path(task.tokenizer.name_or_path) / "tokenizer.json"))
    texts = [ANY_TEXT, 'it\'s (well-known), "so"\n\n 12  34', *(e.prompt + e.continuation for e in task.dataset[:20])]
    assert task.tokenizer(texts)["input_ids"] == [file.encode(text).ids for text in texts]


def test_any_text_is_encoded_and_comes_back(task: Task) -> None:
    ids = task.tokenizer(ANY_TEXT, add_special_tokens=False)["input_ids"]
    assert task.tokenizer.decode(ids) == ANY_TEXT and max(ids) < task.trained_model.config.vocab_size
    assert len(task.tokenizer) == task.trained_model.config.vocab_size


@pytest.mark.parametrize("part", DATA.files)
def test_half_of_each_part_is_to_be_copied(part: str) -> None:
    copies = [example.copied for example in DATA.examples(part)]
    assert not copies[0] and 2 * sum(copies) == len(copies) >= 40


def test_recipes_are_scored_on_texts(task: Task) -> None:
    """Rows are longer than the example inputs, and predictions come back from another process."""
    small = replace(task, model=task.trained_model)
    scores = cpu.score_recipes(small, ["eager-fp32", "torchscript-fp32"], limit=4, threads=1)
    row, own = scores.rows["torchscript-fp32"], small.evaluate(limit=4)
    assert row.status.successful and "fell back" not in str(row.status) and row.agreement == 100.0, str(scores)
    assert row.score.metrics == pytest.approx(dict(own.metrics), rel=1e-3)
    assert row.score.predictions == own.predictions and f"{own.metrics['perplexity']:.2f}" in str(scores)


def test_a_model_with_this_kind_s_name_is_the_one_that_is_timed(task: Task) -> None:
    loaded = cpu.load_model("text-generation")
    assert type(loaded.model) is type(task.model) and loaded.inputs()["attention_mask"].shape == (1, 32)
    assert loaded.as_task().kind is get_kind("text-generation")
