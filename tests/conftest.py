"""Shared fixtures: small real models, their inputs and a small tokenizer, the same on every run, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.apart import pytest_pyfunc_call  # noqa: F401  a hook, which pytest looks for here

# The libraries read it when they are imported. The tests of the hub start child processes with a hub of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor does it matter what is in the cache of whoever runs the tests.
os.environ["HF_HUB_CACHE"] = os.path.join(tempfile.gettempdir(), "no hub cache for tests")

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = (
    "the a an cat dog sat on mat in of and is was where who what when did river runs through city old bridge "
    "Paris London Anna Smith works for blue red house garden tower north south built year ##s ##ed ##ing "
    ". , ? ! - ' ( )"
).split()


def make_bert(
    model_class: str = "BertForQuestionAnswering", *, attention: str = "sdpa", seed: int = 0, **config: Any
) -> torch.nn.Module:
    """A BERT small enough for a test: two layers, 32 wide, random weights from the seed, in evaluation mode."""
    import transformers

    sizes = {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    settings = transformers.BertConfig(**{**sizes, **config})
    settings._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, model_class)(settings).eval()


class MaskDroppedWhenFull(torch.nn.Module):
    """Looks at the mask's values in Python: an all-ones example bakes in that there is no padding."""

    def forward(self, input_ids, attention_mask):
        scores = input_ids.float()
        if not bool(attention_mask.all()):
            scores = scores * attention_mask
        return scores.sum(dim=1)


def make_inputs(batch: int = 2, length: int = 12, *, padding: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids, segments and mask of shape (batch, length); every row but the first ends with ``padding`` pads."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 120, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        mask[1:, -padding:] = 0
        ids[1:, -padding:] = 0
    segments = torch.zeros_like(ids)
    segments[:, length // 2 :] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


@contextmanager
def no_temporary_folder() -> Iterator[None]:
    """As on a system where no temporary file can be made; not for a whole test, as pytest makes some at its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no such folder"])
        yield


def seen_in_child(*words: str, **environment: str) -> Any:
    """Run Python with these words in a process of its own; what it printed behind ``SEEN``, once, as JSON."""
    child = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        timeout=300,
        check=False,
    )
    lines = [line for line in child.stdout.splitlines() if line.startswith("SEEN ")]
    assert child.returncode == 0 and len(lines) == 1, child.stderr[-3000:]
    return json.loads(lines[0].removeprefix("SEEN "))


@pytest.fixture(scope="session")
def bert() -> torch.nn.Module:
    """A small BERT for question answering with SDPA attention, shared: a test must not change it."""
    return make_bert()


@pytest.fixture(scope="session")
def eager_bert() -> torch.nn.Module:
    """The same with eager attention, shared: a test must not change it."""
    return make_bert(attention="eager")


@pytest.fixture
def new_bert() -> Callable[..., torch.nn.Module]:
    """Makes a small BERT that a test may change; see :func:`make_bert`."""
    return make_bert


@pytest.fixture
def bert_inputs() -> dict[str, torch.Tensor]:
    """Inputs of the small BERT: 2 rows of 12 tokens, no padding."""
    return make_inputs()


@pytest.fixture
def new_inputs() -> Callable[..., dict[str, torch.Tensor]]:
    """Makes inputs of the small BERT; see :func:`make_inputs`."""
    return make_inputs


# What accelerate leaves for processes that it would start: every Trainer after it, here or in a child, heeds it.
ACCELERATES_OWN = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_IPEX")


@pytest.fixture(autouse=True)
def environment_of_accelerate_kept() -> Iterator[None]:
    """A Trainer in BF16 must not decide what a later test's runs in."""
    before = {name: os.environ.get(name) for name in ACCELERATES_OWN}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def new_accelerate_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one Trainer asks accelerate for decides what the next one runs, so tests of Trainers begin anew."""
    from accelerate.state import AcceleratorState

    for name in ACCELERATES_OWN:
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def new_args(tmp_path: Any, new_accelerate_state: None) -> Callable[..., Any]:
    """Makes JitTrainingArguments that write and report nothing."""
    from cpuinfer_helpers.trainer import JitTrainingArguments

    def make(**given: Any) -> Any:
        settings = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "per_device_eval_batch_size": 3}
        return JitTrainingArguments(output_dir=str(tmp_path / "out"), **{**settings, **given})

    return make


@pytest.fixture
def new_trainer(new_args: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a JitTrainer of a model and rows; ``trainer`` has further arguments of its own, the rest are new_args'."""
    from cpuinfer_helpers.trainer import JitTrainer

    def make(model: torch.nn.Module, rows: Any = None, *, trainer: dict[str, Any] | None = None, **args: Any) -> Any:
        return JitTrainer(model=model, args=new_args(**args), eval_dataset=rows, **(trainer or {}))

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small WordPiece tokenizer with BERT's own normalisation; letters are in the vocabulary, so no word is lost."""
    import transformers

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def write_tokenizer(folder: Any) -> None:
    """Write tokenizer.json and its configuration, which both versions of transformers read alike."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in (*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1))]
    lower = [word.lower() for word in WORDS]
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *lower, *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    built = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    built.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 64,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
