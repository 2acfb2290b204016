"""Text generation beside its peers: the tables that the figures in docs/results.md come from.

`make bench-generate` runs it. It takes about half an hour on two cores; --recipes makes it shorter, and --large adds a
model of half a billion weights. Times of engines are those of the step alone, because what `generate()` does around it
is the same for all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402

import cpuinfer_helpers as cpu  # noqa: E402
from cpuinfer_helpers.display import Table  # noqa: E402
from cpuinfer_helpers.generation.selection import GenerationComparison, GenerationResult  # noqa: E402
from tools.peers import llama_cpp  # noqa: E402

# (what, precisions of ours, peers, at least as fast as the best of them by this factor)
DECODING = (
    ("FP32", ("fp32",), ("openvino-fp32", "llamacpp-fp32"), 0.95),
    ("16-bit weights", ("fp16w", "bf16"), ("openvino-fp32", "llamacpp-fp32"), 1.4),
    ("INT8", ("int8",), ("openvino-int8", "llamacpp-int8"), 1.0),
    ("INT4", ("int4",), ("llamacpp-int4",), 0.95),
    ("native BF16", ("bf16",), ("eager-bf16",), 1.5),
    ("native BF16", ("bf16",), ("openvino-bf16",), 1.0),
)
PREFILL = (("INT8", ("int8",), ("openvino-int8", "llamacpp-int8"), 1.3),)
SHARE_OF_BANDWIDTH = {"FP32": 0.75, "16-bit weights": 0.75}
LARGEST_MEAN_ERROR, MORE_PERPLEXITY = 0.03, {"int8": 0.01, "int4": 0.05}
MOST_RESIDENT, GAIN_OF_LOOKUP, GAIN_OF_BATCH = 1.2, 1.8, 3.0
BATCH_TOKENS = (96, 60, 80, 72, 40, 88, 52, 64)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    output = ROOT / "build"
    output.mkdir(exist_ok=True)
    print(cpu.machine_report(), flush=True)
    recipes = [*_ours(options.recipes), *_peers()]
    task = cpu.load_task("text-generation")
    timed = task.trained_model if options.fast else task.model
    found = {"small": _speed("GPT-2's geometry, random weights", timed, task, recipes, options)}
    if options.large:
        model = half_a_billion()
        found["large"] = _speed("Qwen2 0.5B's geometry, random weights", model, task, recipes, options)
        del model
    kept = _answers(task, recipes, options)
    rows = [row for name, comparison in found.items() for row in _targets(name, comparison)]
    rows += [*_kept_targets(kept), *_whole_targets(task, timed, found["small"], options)]
    columns = ("what", "our best", "against", "measured", "target", "verdict")
    print(f"\n{Table(columns, tuple(rows), title='Targets: medians, same threads, one run')}", flush=True)
    for name, comparison in {**found, "answers": kept}.items():
        comparison.save(output / f"bench-generate-{name}.json")
    (output / "bench-generate-targets.json").write_text(
        json.dumps([dict(zip(columns, row, strict=True)) for row in rows])
    )
    return 0


def half_a_billion() -> torch.nn.Module:
    """Random weights in the geometry of Qwen2 0.5B."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config).eval()


def _speed(
    title: str, model: torch.nn.Module, task: Any, recipes: Sequence[Any], options: argparse.Namespace
) -> GenerationComparison:
    prompts = task.inputs(1, options.prompt)
    comparison = cpu.compare_generators(
        model, prompts, recipes, new_tokens=options.new_tokens, turns=options.turns, verify=False
    )
    print(f"\n## {title}\n{comparison}\n\n{engines(comparison)}", flush=True)
    return comparison


def engines(comparison: GenerationComparison) -> Table:
    """The steps alone, and what the process holds."""
    rows = []
    for row in comparison.rows.values():
        if row.timing is None:
            continue
        seconds, overhead = step_s(row), row.timing.overhead
        share = row.timing.bytes_read / seconds / comparison.bandwidth if comparison.bandwidth else 0.0
        rows.append(
            (
                row.recipe,
                f"{1e3 * seconds:.2f}",
                f"{1e3 * min(step_turns(row)):.2f}",
                "" if overhead is None else f"{1e3 * overhead:.2f}",
                f"{row.timing.prefill_rate:.0f}",
                f"{1 / seconds:.1f}",
                f"{row.timing.bytes_read / 1e6:.0f}",
                f"{share:.0%}",
                f"{(row.resident_bytes or 0) / 1e6:.0f}",
                f"{(row.peak_bytes or 0) / 1e6:.0f}",
            )
        )
    columns = (
        "engine",
        "ms a token, median",
        "fastest turn",
        "generate()",
        "prefill tokens/s",
        "decode tokens/s",
        "MB a token",
        "of memory",
        "MB held",
        "MB at most",
    )
    return Table(columns, tuple(rows), title="The steps alone", numeric=columns[1:])


def step_turns(row: GenerationResult) -> list[float]:
    """Mean seconds of a token in each turn, without what `generate()` does around it where that is known."""
    return [statistics.fmean(turn.step or turn.tokens) for turn in row.timing.turns]


def step_s(row: GenerationResult) -> float:
    """Their median."""
    return statistics.median(step_turns(row))


def _targets(name: str, comparison: GenerationComparison) -> Iterator[tuple[str, ...]]:
    for what, precisions, peers, least in DECODING:
        # Without its instructions BF16 is emulated, and says nothing.
        if what == "native BF16" and not cpu.machine_report().bf16_native:
            yield (
                f"{name}: {what} decode",
                "",
                ", ".join(peers),
                "not native here",
                f">= {least:.2f}x",
                "not measured",
            )
            continue
        best = _fastest(comparison, precisions, step_s)
        # OpenVINO's recipes are ours and peers: none is measured against itself.
        peer = _best_peer(comparison, [name for name in peers if best is None or name != best.recipe], step_s)
        yield _row(f"{name}: {what} decode", best, peer, least, step_s)
        if what in SHARE_OF_BANDWIDTH and best is not None and comparison.bandwidth:
            share = best.timing.bytes_read / step_s(best) / comparison.bandwidth
            least_share = SHARE_OF_BANDWIDTH[what]
            measured = f"{share:.0%} of {comparison.bandwidth / 1e9:.1f} GB/s"
            verdict = "reached" if share >= least_share else "missed"
            yield (f"{name}: {what}, memory", best.recipe, "bandwidth", measured, f">= {least_share:.0%}", verdict)
    for what, precisions, peers, least in PREFILL:
        best = _fastest(comparison, precisions, _first_s)
        peer = _best_peer(comparison, [name for name in peers if best is None or name != best.recipe], _first_s)
        yield _row(f"{name}: {what} prefill", best, peer, least, _first_s)
    for row in _measured(comparison):
        if row.weight_bytes and row.recipe.startswith(("torchscript-", "openvino-")):
            ratio = (row.resident_bytes or 0) / row.weight_bytes
            verdict = "reached" if ratio <= MOST_RESIDENT else "missed"
            limit = f"<= {MOST_RESIDENT:.1f}x"
            yield (f"{name}: memory held", row.recipe, "bytes of weights", f"{ratio:.2f}x", limit, verdict)


def _row(
    what: str,
    best: GenerationResult | None,
    peer: GenerationResult | None,
    least: float,
    seconds: Callable[[GenerationResult], float],
) -> tuple[str, ...]:
    if best is None or peer is None:
        missing = "none of ours ran" if best is None else "no peer ran"
        return (
            what,
            best.recipe if best else "",
            peer.recipe if peer else "",
            missing,
            f">= {least:.2f}x",
            "not measured",
        )
    ratio = seconds(peer) / seconds(best)
    return (
        what,
        best.recipe,
        peer.recipe,
        f"{ratio:.2f}x",
        f">= {least:.2f}x",
        "reached" if ratio >= least else "missed",
    )


def _first_s(row: GenerationResult) -> float:
    return row.timing.first_token


def _measured(comparison: GenerationComparison) -> list[GenerationResult]:
    return [row for row in comparison.rows.values() if row.successful and row.timing is not None]


def _fastest(
    comparison: GenerationComparison, precisions: Sequence[str], seconds: Callable[[GenerationResult], float]
) -> GenerationResult | None:
    ours = [row for row in _measured(comparison) if row.precision in precisions and not row.recipe.startswith("llama")]
    ours = [row for row in ours if not (row.precision == "bf16" and row.emulated)]
    return min(ours, key=seconds, default=None)


def _best_peer(
    comparison: GenerationComparison, peers: Sequence[str], seconds: Callable[[GenerationResult], float]
) -> GenerationResult | None:
    return min((row for row in _measured(comparison) if row.recipe in peers), key=seconds, default=None)


def _answers(task: Any, recipes: Sequence[Any], options: argparse.Namespace) -> GenerationComparison:
    """What the small trained model's answers lose."""
    held_out = task.running_text(4 if options.fast else 32, 64)
    comparison = cpu.compare_generators(
        task.trained_model, task.inputs(2, 32, tokens=[32, 20]), recipes, turns=1, held_out=held_out
    )
    print(f"\n## Answers of the trained model\n{comparison.answers()}", flush=True)
    return comparison


def _kept_targets(comparison: GenerationComparison) -> Iterator[tuple[str, ...]]:
    for row in comparison.rows.values():
        if row.precision not in MORE_PERPLEXITY or row.recipe.startswith("llama"):
            continue
        limit = f"<= {MORE_PERPLEXITY[row.precision]:+.0%}"
        if row.precision == "int8":
            limit = f"mean error <= {LARGEST_MEAN_ERROR:.0%}, {limit}"
        if row.more_perplexity is None:
            yield ("answers kept", row.recipe, "the model", str(row.status), limit, "missed")
            continue
        # Verification refuses a mean error or a perplexity beyond these limits.
        error = row.receipt.evidence.get("logits", "")
        verdict = "reached" if row.successful else "missed"
        yield ("answers kept", row.recipe, "the model", f"{row.more_perplexity:+.2%}; {error}", limit, verdict)


def _whole_targets(
    task: Any, model: torch.nn.Module, comparison: GenerationComparison, options: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    best = min(_measured(comparison), key=step_s).recipe
    best = best if not best.startswith("llama") else "torchscript-fp16w"
    lookup, recipe = prompt_lookup(task, options.turns)
    verdict = "reached" if lookup >= GAIN_OF_LOOKUP else "missed"
    yield ("prompt lookup, copying", recipe, "greedy, same tokens", f"{lookup:.2f}x", f">= {GAIN_OF_LOOKUP}x", verdict)
    gain = batch_gain(cpu.prepare_generator(best, model, task.inputs(2, 32), verify=False), task, options)
    verdict = "reached" if gain >= GAIN_OF_BATCH else "missed"
    yield ("8 prompts at once", best, "one after the other", f"{gain:.2f}x", f">= {GAIN_OF_BATCH}x", verdict)


def prompt_lookup(task: Any, turns: int, recipe: str = "torchscript-fp32") -> tuple[float, str]:
    """How many times faster copies are written with drafts from the prompt; the tokens are seen to be the same."""
    generator = cpu.prepare_generator(recipe, task.trained_model, task.inputs(2, 32))
    copies = [example for example in task.dataset if example.copied][:6]
    prompts = [task.tokenizer(example.prompt, return_tensors="pt") for example in copies]
    ratios = []
    for _ in tqdm(range(turns), desc="prompt lookup", leave=False):
        plain, drafted = (
            _seconds(lambda more=more: [_write(generator, one, max_new_tokens=64, **more) for one in prompts])
            for more in ({}, {"prompt_lookup_num_tokens": 10})
        )
        ratios.append(plain[0] / drafted[0])
        if any(not torch.equal(a, b) for a, b in zip(plain[1], drafted[1], strict=True)):
            raise cpu.RecipeError("prompt lookup has written other tokens than greedy decoding")
    return statistics.median(ratios), recipe


def batch_gain(generator: cpu.Generator, task: Any, options: argparse.Namespace) -> float:
    """How many times as many tokens a second 8 prompts of mixed length give at once as one after the other."""
    longest = min(max(BATCH_TOKENS), options.prompt)
    tokens = [min(count, longest) for count in BATCH_TOKENS]
    together = task.inputs(len(tokens), longest, tokens=tokens)
    alone = [
        {name: tensor[row : row + 1, longest - count :] for name, tensor in together.items()}
        for row, count in enumerate(tokens)
    ]
    ratios = []
    for _ in tqdm(range(min(options.turns, 3)), desc="8 prompts", leave=False):
        new = {"max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens}
        apart, _written = _seconds(lambda new=new: [_write(generator, one, **new) for one in alone])
        at_once, _written = _seconds(lambda new=new: _write(generator, together, **new))
        ratios.append(apart / at_once)
    return statistics.median(ratios)


def _write(generator: cpu.Generator, prompts: Mapping[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    inputs = {name: prompts[name] for name in ("input_ids", "attention_mask")}
    return generator.generate(**inputs, do_sample=False, **settings)


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _ours(names: str | None) -> list[str]:
    return names.split(",") if names else [recipe.name for recipe in cpu.list_generation_recipes()]


def _peers() -> list[Any]:
    found = list(llama_cpp.recipes())
    why = found[0].why_not
    if why:
        print(
            f"llama.cpp is not measured: {why} (pip install llama-cpp-python gguf; half an hour to build)", flush=True
        )
        return []
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-generate", description=__doc__)
    parser.add_argument("--recipes", help="names with commas between them; all unless given")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt (default 128)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens that are written (default 64)")
    parser.add_argument("--turns", type=int, default=6, help="whole texts of each recipe (default 6)")
    parser.add_argument("--large", action="store_true", help="half a billion weights too")
    parser.add_argument("--fast", action="store_true", help="a small model in the place of GPT-2, to see that it runs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
