"""llama.cpp as a step: weights written as GGUF, quantised by its own tool, and fed through ``llama_decode``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.generation.layout import layout_of
from cpuinfer_helpers.generation.linears import linear_layers
from cpuinfer_helpers.generation.step import GenerationRecipe, State, Step, StepBuild, StepRequest
from cpuinfer_helpers.generation.weights import limit_of
from cpuinfer_helpers.machine.scratch import temporary_folder

NEEDS = ("llama-cpp-python>=0.3", "gguf>=0.10")
# Tokens that it is given at once.
_BATCH = 512


@dataclass(frozen=True)
class _Kind:
    """How llama.cpp stores weights: its name and number, and whether its cache is in FP32."""

    name: str
    file_type: int | None
    cache: str = "float16"


_KINDS = {
    "fp32": _Kind("F32", None, "float32"),
    "fp16w": _Kind("F16", 1),
    "int8": _Kind("Q8_0", 7),
    "int4": _Kind("Q4_0", 2),
}


class LlamaState(State):
    """A context of llama.cpp's, a sequence for each row; padding is not fed.

    Parameters
    ----------
    step
        Whose model it is of.
    batch, capacity
        Rows, and tokens of each.
    """

    def __init__(self, step: LlamaStep, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        self.step = step
        self.padding = [0] * batch
        self.context = step.new_context(batch, capacity)

    def _crop(self, length: int) -> None:
        import llama_cpp

        memory = llama_cpp.llama_get_memory(self.context)
        for row, padding in enumerate(self.padding):
            llama_cpp.llama_memory_seq_rm(memory, row, max(0, length - padding), -1)

    def _reorder(self, rows: torch.Tensor) -> None:
        self._move(rows.tolist(), self.capacity)
        self.padding = [self.padding[row] for row in rows.tolist()]

    def _grow(self, capacity: int) -> None:
        self._move(list(range(self.batch)), capacity)

    def _move(self, rows: list[int], capacity: int) -> None:
        """Into another context; sequences are written out and read there."""
        import llama_cpp

        new = self.step.new_context(len(rows), capacity)
        for row, old in enumerate(rows):
            size = llama_cpp.llama_state_seq_get_size(self.context, old)
            data = (ctypes.c_uint8 * size)()
            llama_cpp.llama_state_seq_get_data(self.context, data, size, old)
            llama_cpp.llama_state_seq_set_data(new, data, size, row)
        llama_cpp.llama_free(self.context)
        self.context = new

    def __del__(self) -> None:
        import llama_cpp

        if getattr(self, "context", None) is not None:
            llama_cpp.llama_free(self.context)


class LlamaStep(Step):
    """Feeds llama.cpp.

    Parameters
    ----------
    path
        A GGUF file.
    vocabulary
        Number of tokens.
    limit
        The most tokens that a row may have.
    cache
        ``float32`` or ``float16``.
    """

    def __init__(self, path: Path, vocabulary: int, limit: int | None, cache: str) -> None:
        import llama_cpp

        _quiet(llama_cpp)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        # The file goes when it is loaded, and what is mapped from it would stay shared with the system.
        settings.use_mmap = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise RecipeError(f"llama.cpp does not load {path.name}")
        self.vocabulary, self.limit, self.cache = vocabulary, limit, cache

    def new_context(self, batch: int, capacity: int) -> Any:
        """Room for so many tokens in so many rows."""
        import llama_cpp

        settings = llama_cpp.llama_context_default_params()
        settings.n_seq_max = batch
        settings.n_ctx = batch * (-(-capacity // 256) * 256)
        settings.n_batch = settings.n_ubatch = _BATCH
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        # Sequences are moved to other rows, for which they have to be in one room.
        settings.kv_unified = True
        if self.cache == "float32":
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        context = llama_cpp.llama_init_from_model(self.model, settings)
        if not context:
            raise RecipeError(f"llama.cpp makes no context for {batch} x {capacity} tokens")
        return context

    def _new_state(self, batch: int, capacity: int) -> LlamaState:
        return LlamaState(self, batch, capacity)

    def _feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: LlamaState, last: int
    ) -> torch.Tensor:
        rows, fed = ids.shape
        real = mask[:, -fed:].bool()
        if state.length == 0:
            state.padding = [0] * rows
        logits = torch.zeros(rows, last, self.vocabulary)
        tokens = [(row, column) for row in range(rows) for column in range(fed) if real[row, column]]
        for first in range(0, len(tokens), _BATCH):
            some = tokens[first : first + _BATCH]
            wanted = [place for place in some if place[1] >= fed - last]
            values = self._decoded(state, ids, positions, some, fed - last)
            for (row, column), found in zip(wanted, values, strict=True):
                logits[row, column - fed + last] = found
        state.padding = [padding + int((~real[row]).sum()) for row, padding in enumerate(state.padding)]
        return logits

    def _decoded(
        self,
        state: LlamaState,
        ids: torch.Tensor,
        positions: torch.Tensor,
        tokens: list[tuple[int, int]],
        first_wanted: int,
    ) -> torch.Tensor:
        import llama_cpp
        import numpy

        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for number, (row, column) in enumerate(tokens):
                batch.token[number] = int(ids[row, column])
                batch.pos[number] = int(positions[row, column])
                batch.n_seq_id[number] = 1
                batch.seq_id[number][0] = row
                batch.logits[number] = column >= first_wanted
            failed = llama_cpp.llama_decode(state.context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if failed:
            raise RecipeError(f"llama_decode fails with {failed}")
        count = sum(column >= first_wanted for _, column in tokens)
        if not count:
            return torch.zeros(0, self.vocabulary)
        seen = llama_cpp.llama_get_logits(state.context)
        return torch.from_numpy(numpy.ctypeslib.as_array(seen, (count, self.vocabulary)).copy())


def _build(request: StepRequest) -> StepBuild:
    kind, config, layers = _KINDS[request.precision], request.config, linear_layers(request.model)
    with temporary_folder() as folder:
        whole = folder / "f32.gguf"
        write_gguf(request.model, config, whole)
        path = whole if kind.file_type is None else _quantised(whole, folder / f"{kind.name}.gguf", kind.file_type)
        read, dtypes = _weights_in(path)
        step = LlamaStep(path, config.vocab_size, limit_of(request.model), kind.cache)
    return StepBuild(
        step=step,
        runs=f"llama.cpp, {kind.name}",
        weights=kind.name,
        compute="llama.cpp's own",
        cache=kind.cache,
        attention="llama.cpp's own",
        converted=len(layers),
        layers=len(layers),
        weight_bytes=read,
        token_bytes=layout_of(request.model).bytes_in(getattr(torch, kind.cache)),
        evidence={"tensors of the file": dtypes, "llama.cpp": _system_info()},
    )


def write_gguf(model: Any, config: Any, path: Path) -> None:
    """Write a model's weights in FP32 as a GGUF file without a tokenizer.

    Parameters
    ----------
    model
        GPT-2 or Qwen 2 of transformers'.
    config
        Its configuration.
    path
        The file.

    Raises
    ------
    RecipeError
        For other architectures.
    """
    import gguf

    if config.model_type not in _ARCHITECTURES:
        raise RecipeError(f"{config.model_type} is not written as GGUF here; known are {', '.join(_ARCHITECTURES)}")
    writer = gguf.GGUFWriter(str(path), config.model_type)
    describe, tensors = _ARCHITECTURES[config.model_type]
    describe(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in tensors(model):
        writer.add_tensor(name, tensor.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe_gpt2(writer: Any, config: Any) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _gpt2(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    body = model.transformer
    yield "token_embd.weight", body.wte.weight
    yield "position_embd.weight", body.wpe.weight
    yield from _both("output_norm", body.ln_f)
    if model.lm_head.weight is not body.wte.weight:
        yield "output.weight", model.lm_head.weight
    for number, block in enumerate(body.h):
        parts = {
            "attn_norm": block.ln_1,
            "attn_qkv": block.attn.c_attn,
            "attn_output": block.attn.c_proj,
            "ffn_norm": block.ln_2,
            "ffn_up": block.mlp.c_fc,
            "ffn_down": block.mlp.c_proj,
        }
        for name, part in parts.items():
            yield from _both(f"blk.{number}.{name}", part)


def _describe_qwen2(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0)))


def _qwen2(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    body = model.model
    yield "token_embd.weight", body.embed_tokens.weight
    yield from _both("output_norm", body.norm)
    if model.lm_head.weight is not body.embed_tokens.weight:
        yield "output.weight", model.lm_head.weight
    for number, layer in enumerate(body.layers):
        parts = {
            "attn_norm": layer.input_layernorm,
            "attn_q": layer.self_attn.q_proj,
            "attn_k": layer.self_attn.k_proj,
            "attn_v": layer.self_attn.v_proj,
            "attn_output": layer.self_attn.o_proj,
            "ffn_norm": layer.post_attention_layernorm,
            "ffn_gate": layer.mlp.gate_proj,
            "ffn_up": layer.mlp.up_proj,
            "ffn_down": layer.mlp.down_proj,
        }
        for name, part in parts.items():
            yield from _both(f"blk.{number}.{name}", part)


_ARCHITECTURES = {"gpt2": (_describe_gpt2, _gpt2), "qwen2": (_describe_qwen2, _qwen2)}


def _both(name: str, part: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weight and bias, the former (outputs, inputs)."""
    from cpuinfer_helpers.generation.linears import plain_weight

    is_matrix = part.weight.dim() == 2
    yield f"{name}.weight", plain_weight(part) if is_matrix else part.weight
    if getattr(part, "bias", None) is not None:
        yield f"{name}.bias", part.bias


def _quantised(source: Path, target: Path, file_type: int) -> Path:
    import llama_cpp

    _quiet(llama_cpp)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = file_type
    settings.nthread = torch.get_num_threads()
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if failed:
        raise RecipeError(f"llama_model_quantize fails with {failed}")
    return target


def _weights_in(path: Path) -> tuple[int, str]:
    """Bytes of weights that a token reads, and how many tensors there are of each kind."""
    import gguf

    tensors = list(gguf.GGUFReader(str(path)).tensors)
    names = {tensor.name for tensor in tensors}
    looked_up = {"position_embd.weight"} | ({"token_embd.weight"} if "output.weight" in names else set())
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
    read = sum(int(tensor.n_bytes) for tensor in tensors if tensor.name not in looked_up)
    return read, ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


def _system_info() -> str:
    import llama_cpp

    return llama_cpp.llama_print_system_info().decode(errors="replace").strip()


def _quiet(llama_cpp: Any) -> None:
    """It writes pages to standard error."""
    llama_cpp.llama_log_set(_LOG, ctypes.c_void_p(0))


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _LOG(level: int, text: bytes, _: Any) -> None:
    """Nothing is said."""


def recipes() -> tuple[GenerationRecipe, ...]:
    """llama.cpp in each of its precisions."""
    return tuple(
        GenerationRecipe(f"llamacpp-{precision}", f"llama.cpp with weights in {kind.name}", _build, NEEDS)
        for precision, kind in _KINDS.items()
    )
