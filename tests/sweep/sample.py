"""The sample that the tests run: classes of every difficult kind, and what has to come of each recipe."""

from __future__ import annotations

from sweep.trial import REFUSED, RIGHT, RIGHT_BY_SHAPE, TRACE
from sweep.writing import WRITING

# What comes of a recipe, and for a refusal a part of the reason. Where the two major versions of transformers differ,
# an entry for each.
Outcome = tuple[str, str]
Expected = Outcome | dict[int, Outcome]
_ONE = (RIGHT, "")
_EACH = (RIGHT_BY_SHAPE, "")

_TRACED: dict[str, Expected] = {
    # Positions, chunks and windows that Python computes from the length.
    "FunnelForQuestionAnswering": _EACH,
    "LongformerForTokenClassification": _EACH,
    "BigBirdForTokenClassification": _EACH,
    "CanineForTokenClassification": _EACH,
    "SEWForSequenceClassification": _EACH,
    # Which positions attend globally depends on what the mask hides, and not on the shape alone.
    "LongformerForSequenceClassification": (REFUSED, "padding on the left"),
    # Sizes that Python reads from tensors.
    "TapasForSequenceClassification": {4: _EACH, 5: _ONE},
    "XmodForQuestionAnswering": _ONE,
    "JetMoeForSequenceClassification": _ONE,
    "MixtralForTokenClassification": _ONE,
    # Operators of Python's own.
    "YosoForTokenClassification": _ONE,
    "BloomForQuestionAnswering": _ONE,
    # Attention, embeddings and outputs of many kinds.
    "BertForQuestionAnswering": _ONE,
    "DebertaV2ForSequenceClassification": _ONE,
    "MobileBertForQuestionAnswering": _ONE,
    "XLNetForTokenClassification": _ONE,
    "FNetForSequenceClassification": _ONE,
    "GPT2ForSequenceClassification": _ONE,
    "T5ForSequenceClassification": _ONE,
    "LayoutLMv3ForTokenClassification": _ONE,
    # Images: of any size, of the size that the model is for, and padded to windows.
    "ViTForImageClassification": _ONE,
    "ConvNextForImageClassification": _ONE,
    "SwinForImageClassification": _EACH,
    "MobileNetV2ForImageClassification": _EACH,
    # Sounds, as samples and as spectrograms.
    "Wav2Vec2ForSequenceClassification": _ONE,
    "ASTForAudioClassification": _ONE,
    "WhisperForAudioClassification": _ONE,
}


# Further tasks, and the recipes beside tracing.
_RECIPES: dict[str, dict[str, Expected]] = {
    "BertForMultipleChoice": {TRACE: _ONE, "onnxruntime-fp32": _ONE},
    "T5ForConditionalGeneration": {TRACE: _ONE, "openvino-fp32": _ONE, WRITING: _ONE},
    "WhisperForConditionalGeneration": {WRITING: _ONE},
    "BertForMaskedLM": {"onednn-graph-fp32": _ONE},
    "DetrForObjectDetection": {TRACE: _ONE},
    "CLIPModel": {TRACE: _ONE},
}
# Class: what comes of each of its recipes.
SAMPLE = {name: {TRACE: outcome} for name, outcome in _TRACED.items()} | _RECIPES


def expected(name: str, recipe: str, major: int) -> Outcome:
    """What has to come of a class and a recipe under this major version of transformers."""
    entry = SAMPLE[name][recipe]
    return entry[major] if isinstance(entry, dict) else entry
