"""The generated data set of the demos and comparisons, in ``data/shapes``."""

from collections.abc import Sequence
from pathlib import Path

from mmlocal.datasets.shapes import VERSION, add_task, generate_shapes, read_manifest
from mmlocal.errors import UsageError

DATA_ROOT = Path("data/shapes")


def prepare_shapes(tasks: Sequence[str]) -> dict:
    """Generate the data of some tasks in ``data/shapes``, unless it is there. Other data stays.

    Args:
        tasks: tasks of :func:`mmlocal.datasets.shapes.generate_shapes`.

    Returns:
        The arguments that the data was generated with.

    Raises:
        UsageError: ``data/shapes`` holds something else, or the data cannot be written.
    """
    manifest = read_manifest(DATA_ROOT)
    if manifest is not None and manifest["version"] != VERSION:
        raise UsageError(
            f"{DATA_ROOT} was made by version {manifest['version']} of the generator, but "
            f"version {VERSION} is needed; replace it with 'mmlocal make-shapes --overwrite'"
        )
    arguments = manifest["arguments"] if manifest is not None else {"tasks": []}
    made = set(arguments["tasks"])
    if "nyud" not in arguments.get("layouts", ()):  # the demos read no other layout
        made.discard("multitask")
    missing = [task for task in tasks if task not in made]
    if manifest is not None and not missing:
        print(f"data: {DATA_ROOT} is there already", flush=True)
        return manifest["arguments"]
    print(f"data: generating {DATA_ROOT} for the task {' and '.join(missing)}", flush=True)
    try:
        if manifest is None:
            return generate_shapes(DATA_ROOT, tasks=missing)["arguments"]
        for task in missing:
            manifest = add_task(DATA_ROOT, task)
        return manifest["arguments"]
    except FileExistsError as error:
        if read_manifest(DATA_ROOT) is not None:  # another process was faster
            return prepare_shapes(tasks)
        raise UsageError(
            f"{DATA_ROOT} is not a data set of 'mmlocal make-shapes'; move it, because the "
            "generated data needs this path"
        ) from error
    except (ValueError, OSError) as error:
        raise UsageError(f"the data cannot be generated: {error}") from error
