"""The command line: ``python -m cpuinfer_helpers optimize``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cpuinfer_helpers.commands.shared import exit_code, names_of
from cpuinfer_helpers.compare.result import check_price
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.optimize.model import KIND
from cpuinfer_helpers.optimize.optimize import optimize
from cpuinfer_helpers.recipes.base import PRECISIONS
from cpuinfer_helpers.saving.folders import check_target
from cpuinfer_helpers.tasks.batches import Model
from cpuinfer_helpers.tasks.kinds.registry import kind_names
from cpuinfer_helpers.tasks.models import LoadedModel, load_model

_BUDGET_S, _BUDGET_OF_TEXTS_S = 120.0, 300.0
_PRECISIONS = "fp32,bf16"
_TEXTS, _NEW_TOKENS = "text-generation", 32
_OF_TEXTS = f"for {_TEXTS} fp32,fp16w,bf16 unless given, and int8 and int4 besides"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of this command."""
    parser.add_argument("--model", required=True, help="a folder that save_pretrained wrote, or a name on the hub")
    parser.add_argument("--task", required=True, choices=kind_names(), help="what the model does")
    parser.add_argument("--save", metavar="DIR", help="write the optimized model to this folder, for load_optimized")
    parser.add_argument("--precisions", help=f"some of {','.join(PRECISIONS)} (default {_PRECISIONS}); {_OF_TEXTS}")
    parser.add_argument("--recipes", help="names separated by commas; all unless given")
    budget = f"seconds for everything ({_BUDGET_S:g}; {_BUDGET_OF_TEXTS_S:g} for {_TEXTS})"
    parser.add_argument("--budget", type=float, help=budget)
    parser.add_argument("--tolerance", type=float, help="largest error, as a share of the largest answer")
    parser.add_argument("--metric-examples", type=int, default=0, help="score so many examples too")
    parser.add_argument("--batch", type=int, default=1, help="rows of a call (default 1)")
    parser.add_argument("--length", type=int, help="tokens or samples of a row (default 384 tokens, 16000 samples)")
    parser.add_argument("--new-tokens", type=int, default=_NEW_TOKENS, help=f"for {_TEXTS}: so many ({_NEW_TOKENS})")
    parser.add_argument("--price-per-hour", type=float, help="what an hour of this machine costs, for a cost table")
    parser.add_argument("--result", metavar="FILE", help="write the comparison as JSON, to compare machines")
    parser.add_argument("--refresh", action="store_true", help="forget what was chosen earlier, and measure")


def run(options: argparse.Namespace) -> int:
    """Print the table of recipes, and save the model if asked.

    Returns
    -------
    int
        Exit code: 0; 2 with one line on standard error if the request cannot be carried out; 130 after Ctrl-C.
    """
    return exit_code(
        "optimize", lambda: _run(options), after_interrupt="all processes are ended, and nothing was saved"
    )


def _run(options: argparse.Namespace) -> int:
    if options.task == _TEXTS:
        return _run_texts(options)
    precisions = names_of("--precisions", options.precisions or _PRECISIONS)
    recipes = names_of("--recipes", options.recipes)
    # What would fail in the end fails before minutes are spent.
    if options.price_per_hour is not None:
        check_price(options.price_per_hour)
    if options.save:
        check_target(options.save, KIND)
    loaded = load_model(options.model, options.task)
    print(loaded, flush=True)
    optimized = optimize(
        loaded.model,
        loaded.inputs(options.batch, options.length),
        precisions=precisions,
        tolerance=options.tolerance,
        metric=_metric(loaded, options.metric_examples),
        budget_s=_BUDGET_S if options.budget is None else options.budget,
        recipes=recipes,
        calibration=loaded.calibration_inputs() if "int8" in precisions else (),
        refresh=options.refresh,
    )
    print(optimized, flush=True)
    if options.price_per_hour is not None:
        print(optimized.comparison.cost(options.price_per_hour), flush=True)
    if options.result:
        optimized.comparison.save(options.result)
    if options.save:
        print(f"saved to {optimized.save(options.save)}", flush=True)
    return 0


def _run_texts(options: argparse.Namespace) -> int:
    """Text generation: what is chosen writes, and is saved with the model's tokenizer."""
    from cpuinfer_helpers.generation import optimize_generator
    from cpuinfer_helpers.generation.saved import KIND as GENERATOR

    precisions, recipes = names_of("--precisions", options.precisions), names_of("--recipes", options.recipes)
    if options.metric_examples:
        raise InputError("--metric-examples is not for text-generation, where perplexity is compared in any case")
    if options.price_per_hour is not None:
        check_price(options.price_per_hour)
    if options.save:
        check_target(options.save, GENERATOR)
    loaded = load_model(options.model, options.task)
    print(loaded, flush=True)
    generator = optimize_generator(
        loaded.model,
        loaded.inputs(options.batch, options.length),
        **({"precisions": precisions} if precisions else {}),
        recipes=recipes,
        held_out=loaded.running_text(),
        new_tokens=options.new_tokens,
        tolerance=options.tolerance,
        budget_s=_BUDGET_OF_TEXTS_S if options.budget is None else options.budget,
        refresh=options.refresh,
    )
    print(f"{generator}\n{generator.comparison}", flush=True)
    if options.price_per_hour is not None:
        print(generator.comparison.cost(options.price_per_hour), flush=True)
    if options.result:
        generator.comparison.save(options.result)
    if options.save:
        saved = generator.save(options.save, model=loaded.model, tokenizer=loaded.tokenizer)
        print(f"saved to {saved}", flush=True)
    return 0


def _metric(loaded: LoadedModel, examples: int) -> Callable[[Model], float] | None:
    if examples < 0:
        raise InputError(f"--metric-examples is {examples}; give at least 1, or 0 for no metric")
    return loaded.metric(examples) if examples else None
