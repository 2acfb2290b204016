"""Write the generated data files and the vocabulary: ``python -m tools.checkpoints.write_data``."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from cpuinfer_helpers.saving.folders import write_text
from cpuinfer_helpers.tasks.data_files import DATA
from tools.checkpoints import question_answering, text_classification, text_generation, token_classification, vocabulary

logger = logging.getLogger("cpuinfer_helpers")
GENERATORS = {
    "question-answering": question_answering,
    "text-classification": text_classification,
    "token-classification": token_classification,
    "text-generation": text_generation,
}


def generated_files() -> dict[str, str]:
    """File name to content of every generated JSON file; the same bytes on every machine."""
    files = {}
    for task, generator in GENERATORS.items():
        for split in ("train", "heldout"):
            content = generator.write_file(split)
            files[f"{task}-{split}.json"] = _as_json(content)
    return files


def _as_json(content: object) -> str:
    if isinstance(content, list):  # one example a line, so that a change shows as a change of that line
        return "[\n" + ",\n".join(json.dumps(example, ensure_ascii=False) for example in content) + "\n]\n"
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write to (default: the package's)")
    parser.add_argument(
        "--vocabulary",
        action="store_true",
        help="learn vocab.txt anew as well; every checkpoint of a BERT must then be trained again",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.output.mkdir(parents=True, exist_ok=True)
    files = generated_files()
    if options.vocabulary:
        files["vocab.txt"] = "\n".join(vocabulary.train_vocabulary()) + "\n"
    for name, text in files.items():
        write_text(options.output / name, text)
        logger.info("wrote %s (%d bytes)", options.output / name, len(text.encode()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
