"""Model families: models of their base width, built offline from their configuration, and the inputs that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.tasks.kinds.registry import loadable_kind

# Rows of the embedding table are looked up, not multiplied with: their number costs memory and hardly any time.
_VOCABULARY = 2048
# Of each sequence so much is padding. With a mask of ones alone the comparison would be unfair: eager models leave such
# a mask out under SDPA, traced ones cannot.
_PADDED_SHARE = 1 / 8
# Below it are the special tokens of every family; in no family is a padding token above it.
_FIRST_WORD = 5

# Positions that every family has learnt embeddings for, as published.
LONGEST = 512

_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": LONGEST}
# RoBERTa and MPNet number positions from two.
_BASE_FROM_TWO = {**_BASE, "max_position_embeddings": LONGEST + 2}


@dataclass(frozen=True)
class Family:
    """One architecture, in the sizes of its base model.

    Attributes
    ----------
    name
        Its ``model_type`` in transformers.
    title
        Its name in papers.
    sizes
        What its configuration is given beside the number of layers and the vocabulary.
    segments
        Whether its tokenizer marks two sentences in ``token_type_ids``.
    layers_name
        What its configuration calls the number of layers.
    layer_factor
        Layers that do the work of one of BERT-base's: MobileBERT has twice as many, and they are thin.
    """

    name: str
    title: str
    sizes: Mapping[str, Any] = field(default_factory=lambda: _BASE)
    segments: bool = False
    layers_name: str = "num_hidden_layers"
    layer_factor: int = 1

    def make_model(self, task: str, layers: int, *, seed: int = 0) -> torch.nn.Module:
        """A model of this family with random weights, in evaluation mode; the process's random state is restored.

        Parameters
        ----------
        task
            ``question-answering``, ``text-classification`` or ``token-classification``.
        layers
            Number of encoder layers, times ``layer_factor``.
        seed
            Decides the weights.

        Returns
        -------
        torch.nn.Module
        """
        import transformers

        kind = loadable_kind(task)
        settings = {**self.sizes, self.layers_name: layers * self.layer_factor, "vocab_size": _VOCABULARY}
        if kind.data.labels:
            settings["num_labels"] = len(kind.data.labels)
        config = transformers.AutoConfig.for_model(self.name, **settings)
        with switches.random_state_kept():
            torch.manual_seed(seed)
            return getattr(transformers, kind.auto_class).from_config(config).eval()

    def make_inputs(
        self, model: torch.nn.Module, batch_size: int, length: int, *, seed: int = 0
    ) -> dict[str, torch.Tensor]:
        """What this family's tokenizer would return for texts that are padded to one length.

        Parameters
        ----------
        model
            A model of this family, for its padding token.
        batch_size, length
            Rows, and tokens of each; the last eighth of each row is padding.
        seed
            Decides the tokens.

        Returns
        -------
        dict of str to torch.Tensor
            ``input_ids``, ``attention_mask`` and, where the family has segments, ``token_type_ids``; each of shape
            (batch_size, length), int64.
        """
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(_FIRST_WORD, _VOCABULARY, (batch_size, length), generator=generator)
        mask = torch.ones_like(ids)
        valid = length - int(length * _PADDED_SHARE)
        mask[:, valid:] = 0
        ids[:, valid:] = model.config.pad_token_id
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.segments:
            inputs["token_type_ids"] = torch.zeros_like(ids)
            inputs["token_type_ids"][:, valid // 2 : valid] = 1
        return inputs


_DEBERTA_V3 = {
    **_BASE,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 768,
}

# XLM-RoBERTa and CamemBERT are left out: they are RoBERTa with other vocabularies.
FAMILIES = {
    family.name: family
    for family in (
        Family("bert", "BERT", segments=True),
        Family("roberta", "RoBERTa", {**_BASE_FROM_TWO, "type_vocab_size": 1}),
        Family(
            "distilbert",
            "DistilBERT",
            {"dim": 768, "n_heads": 12, "hidden_dim": 3072, "max_position_embeddings": LONGEST},
            layers_name="n_layers",
        ),
        Family("albert", "ALBERT", {**_BASE, "embedding_size": 128}, segments=True),
        Family("electra", "ELECTRA", {**_BASE, "embedding_size": 768}, segments=True),
        Family("mobilebert", "MobileBERT", {"max_position_embeddings": LONGEST}, segments=True, layer_factor=2),
        Family("mpnet", "MPNet", _BASE_FROM_TWO),
        Family("deberta-v2", "DeBERTa-v3", _DEBERTA_V3),
    )
}
