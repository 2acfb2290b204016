"""The whole run_qa flow, transformers' own Trainer against ours: questions per second from texts to scored answers.

`make bench-trainer` runs it, on the guide stack, in about ten minutes on two cores. Every flow has a process of its
own, and the flows take turns, so that drift hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cpuinfer_helpers as cpu  # noqa: E402
from cpuinfer_helpers import run_qa  # noqa: E402
from cpuinfer_helpers.display import Table, format_seconds  # noqa: E402
from cpuinfer_helpers.tasks.data_files import DATA  # noqa: E402
from cpuinfer_helpers.tasks.loading import checkpoint_directory  # noqa: E402
from cpuinfer_helpers.tasks.squad import windows as qa  # noqa: E402
from cpuinfer_helpers.tasks.squad.answers import find_answers  # noqa: E402
from cpuinfer_helpers.tasks.squad.data import read_squad  # noqa: E402

QUESTIONS = 64
BATCH = 8
# Flags of the guide, by flow. Ours needs no IPEX; "ours with IPEX" is the guide's second command.
FLOWS = {
    "stock-fp32": ("jit_mode_eval", "use_ipex"),
    "stock-bf16": ("jit_mode_eval", "use_ipex", "bf16"),
    "ours-fp32": ("jit_mode_eval",),
    "ours-bf16": ("jit_mode_eval", "bf16"),
    "ours-ipex-fp32": ("jit_mode_eval", "use_ipex"),
    "ours-ipex-bf16": ("jit_mode_eval", "use_ipex", "bf16"),
}
# (what is compared, our flow, theirs, at least so many times the questions per second)
TARGETS = (
    ("BF16, with stock's best", "ours-bf16", "stock-bf16", 3.0),
    ("FP32, like for like", "ours-fp32", "stock-fp32", 4.0),
)
LARGEST_SHARE_OF_COMPILATION = 0.5


@dataclass(frozen=True)
class Run:
    """One flow over one set of questions: seconds without compilation, compilation, scores, and what ran."""

    flow: str
    seconds: float
    compilation: float
    f1: float
    exact_match: float
    ran: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-trainer", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often every flow runs (default 3)")
    parser.add_argument("--flows", default=",".join(FLOWS), help="with commas between them")
    parser.add_argument("--one", nargs=3, metavar=("FLOW", "MODEL", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print("RUN " + json.dumps(asdict(run_one(*options.one))))
        return 0
    print(cpu.machine_report(), flush=True)
    flows = options.flows.split(",")
    with tempfile.TemporaryDirectory() as folder:
        model, file = write_timing_model(Path(folder))
        runs = [run_in_child(flow, model, file) for _ in range(options.rounds) for flow in flows]
        heldout = str(DATA / "question-answering-heldout.json")
        scored = [run_in_child(flow, str(checkpoint_directory("question-answering")), heldout) for flow in flows]
    print(f"\n## Speed\n{speeds(flows, runs)}\n\n{ratios(runs)}\n\n## Answers\n{scores(scored)}", flush=True)
    return 0


def write_timing_model(folder: Path) -> tuple[str, str]:
    """BERT-base with its tokenizer, and questions of realistic lengths, as a user would have them on disk."""
    task = cpu.load_task("question-answering")
    task.model.save_pretrained(folder / "model")
    task.tokenizer.save_pretrained(folder / "model")
    words = " ".join(question.context for question in task.dataset).split()
    records = []
    for number, length in enumerate(cpu.realistic_lengths(QUESTIONS)):
        question = task.dataset[number].question
        start = 37 * number
        count = length
        while window_length(task.tokenizer, question, words[start : start + count]) > length:
            count -= 1
        context = " ".join(words[start : start + count])
        answers = {"text": [words[start]], "answer_start": [0]}
        records.append({"id": str(number), "question": question, "context": context, "answers": answers})
    file = folder / "questions.json"
    file.write_text(json.dumps({"data": records}), encoding="utf-8")
    return str(folder / "model"), str(file)


def window_length(tokenizer: Any, question: str, words: Sequence[str]) -> int:
    return len(tokenizer(question, " ".join(words))["input_ids"])


def run_in_child(flow: str, model: str, file: str) -> Run:
    print(f"{flow} ...", end=" ", file=sys.stderr, flush=True)
    child = subprocess.run(
        [sys.executable, __file__, "--one", flow, model, file],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    line = next((line for line in child.stdout.splitlines() if line.startswith("RUN ")), None)
    if child.returncode or line is None:
        raise SystemExit(f"{flow} failed:\n{child.stderr[-3000:]}")
    run = Run(**json.loads(line.removeprefix("RUN ")))
    print(f"{format_seconds(run.seconds)}, compilation {format_seconds(run.compilation)}", file=sys.stderr, flush=True)
    return run


def run_one(flow: str, model: str, file: str) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        return (run_stock if flow.startswith("stock") else run_ours)(flow, model, file, folder)


def run_ours(flow: str, model: str, file: str, folder: str) -> Run:
    words = ["--model_name_or_path", model, "--validation_file", file, "--do_eval", "--output_dir", folder, "--no_cuda"]
    words += [*(f"--{flag}" for flag in FLOWS[flow]), "--per_device_eval_batch_size", str(BATCH), "--report_to", "none"]
    (result,) = run_qa.run(*run_qa.parse_options([*words, "--disable_tqdm", "true"]))
    scores = {name: result.metrics[f"eval_{name}"] for name in ("f1", "exact_match")}
    return Run(flow, result.seconds, result.compilation_seconds, **scores, ran=result.receipt.runs)


def run_stock(flow: str, model: str, file: str, folder: str) -> Run:
    """As the run_qa example of transformers: every window padded to 384; the same pre- and post-processing as ours."""
    # As in ours, before the clock runs.
    import torchmetrics.functional.text  # noqa: F401
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    args = transformers.TrainingArguments(
        folder,
        no_cuda=True,
        report_to=[],
        disable_tqdm=True,
        per_device_eval_batch_size=BATCH,
        **dict.fromkeys(FLOWS[flow], True),
    )
    pad = transformers.DataCollatorWithPadding(tokenizer, padding="max_length", max_length=qa.MAX_SEQ_LENGTH)
    loaded = transformers.AutoModelForQuestionAnswering.from_pretrained(model, trust_remote_code=False).eval()
    questions = read_squad(file)
    started = time.perf_counter()
    windows = qa.prepare_windows(questions, tokenizer)
    trainer = transformers.Trainer(model=loaded, args=args, data_collator=pad)
    output = trainer.predict([window.inputs for window in windows], metric_key_prefix="eval")
    answers = find_answers(questions, windows, *output.predictions[:2])
    scores = qa.score_answers(questions, [answers.texts[question.id] for question in questions])
    seconds = time.perf_counter() - started
    compilation = output.metrics["eval_jit_compilation_time"]
    return Run(flow, seconds - compilation, compilation, **scores, ran="transformers' own Trainer, padded to 384")


def speeds(flows: Sequence[str], runs: Sequence[Run]) -> Table:
    rows = []
    for flow in flows:
        mine = [run for run in runs if run.flow == flow]
        rates = [QUESTIONS / run.seconds for run in mine]
        compilation = statistics.median(run.compilation for run in mine)
        whole = statistics.median(QUESTIONS / (run.seconds + run.compilation) for run in mine)
        spread = f"{min(rates):.1f} to {max(rates):.1f}"
        times = (f"{statistics.median(rates):.1f}", spread, format_seconds(compilation), f"{whole:.1f}")
        rows.append((flow, *times, mine[0].ran))
    columns = ("flow", "questions/s", "spread", "compilation", "with compilation", "ran")
    shortest = min(cpu.realistic_lengths(QUESTIONS))
    note = f"{QUESTIONS} questions of {shortest} to {qa.MAX_SEQ_LENGTH} tokens, from texts to scored answers."
    return Table(columns, tuple(rows), note=note, numeric=columns[1:5])


def ratios(runs: Sequence[Run]) -> Table:
    rows = []
    for what, ours, stock, target in TARGETS:
        pairs = list(zip(_of(ours, runs), _of(stock, runs), strict=False))
        if not pairs:
            continue
        faster = [theirs.seconds / mine.seconds for mine, theirs in pairs]
        prepared = statistics.median(mine.compilation / theirs.compilation for mine, theirs in pairs)
        rows.append(
            (
                what,
                f"{statistics.median(faster):.2f}x",
                f"{min(faster):.2f} to {max(faster):.2f}",
                f"{target:g}x {_reached(statistics.median(faster) >= target)}",
                f"{prepared:.2f}x",
                f"{LARGEST_SHARE_OF_COMPILATION:g}x {_reached(prepared <= LARGEST_SHARE_OF_COMPILATION)}",
            )
        )
    columns = ("compared", "questions/s", "spread", "at least", "compilation", "at most")
    return Table(columns, tuple(rows), title="Ours against transformers' own", numeric=columns[1:3])


def scores(runs: Sequence[Run]) -> Table:
    rows = tuple((run.flow, f"{run.exact_match:.2f}", f"{run.f1:.2f}") for run in runs)
    note = "The small trained checkpoint on the held-out questions that this package ships."
    return Table(("flow", "exact match", "F1"), rows, note=note, numeric=("exact match", "F1"))


def _reached(reached: bool) -> str:
    return "reached" if reached else "missed"


def _of(flow: str, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.flow == flow]


if __name__ == "__main__":
    sys.exit(main())
