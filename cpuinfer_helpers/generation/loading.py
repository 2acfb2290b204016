"""Load a prepared generator that somebody has saved."""

from __future__ import annotations

import os
from pathlib import Path

from cpuinfer_helpers.errors import ArtifactError, RecipeError, not_loaded
from cpuinfer_helpers.generation.generator import Generator, bound_example
from cpuinfer_helpers.generation.probe import prompts_of
from cpuinfer_helpers.generation.saved import COMPARISON_FILE, KIND, read_generator_manifest, restore_generator
from cpuinfer_helpers.generation.selection.result import GenerationComparison
from cpuinfer_helpers.generation.stand_in import stand_in
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.saving.kinds import loads


@loads(KIND)
def load_generator(directory: str | os.PathLike[str], *, verify: bool = True) -> Generator:
    """Load what :meth:`Generator.save` wrote; ``load_optimized`` does it for any kind of folder.

    Parameters
    ----------
    directory
        The folder.
    verify
        Compare its logits with those that were saved with it.

    Returns
    -------
    Generator

    Raises
    ------
    ArtifactError
        If the folder is damaged, of another kind, or what it holds gives other logits here.
    RecipeError
        If the recipe cannot run here.
    """
    folder = given_path(directory, "directory")
    try:
        made = restore_generator(read_generator_manifest(folder), folder, verify=verify)
        model = stand_in(made.model_class, made.config, made.settings, made.build.step)
        return Generator(
            recipe=made.recipe,
            model=model,
            inputs=bound_example(prompts_of(made.probe), model),
            receipt=made.receipt,
            build=made.build,
            probe=made.probe,
            tolerance=made.tolerance,
            comparison=_comparison(folder),
        )
    except (ArtifactError, RecipeError):
        raise
    except Exception as error:  # with a changed manifest it may be put together in any wrong way
        raise not_loaded(folder, error) from error


def _comparison(folder: Path) -> GenerationComparison | None:
    """The recipes that were tried before this one was chosen; the manifest has seen to it that the file is whole."""
    path = folder / COMPARISON_FILE
    return GenerationComparison.load(path) if path.exists() else None
