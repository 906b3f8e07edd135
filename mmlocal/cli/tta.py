"""Test-time augmentation, for ``mmlocal test --tta``."""

import logging

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmlocal.cli.config import innermost_test_dataset
from mmlocal.libraries import library_of
from mmlocal.libraries.config_parts import type_name


def augment_test(cfg: Config) -> None:
    """Wrap the model and replace the test pipeline.

    ``tta_model`` and ``tta_pipeline`` of the config say how. If one is missing, the default of the
    library takes its place.

    Args:
        cfg: whole config; this function changes it.

    Raises:
        UsageError: neither the config nor its library says how.
    """
    dataset = innermost_test_dataset(cfg)
    pipeline = dataset.get("pipeline") or []
    library = library_of(cfg)
    if not cfg.get("tta_model") or not cfg.get("tta_pipeline"):
        model, augmented = library.default_tta(pipeline)
        print_log("no tta_model or tta_pipeline in the config: flips only", level=logging.WARNING)
        cfg.tta_model = cfg.get("tta_model") or model
        cfg.tta_pipeline = cfg.get("tta_pipeline") or augmented
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    labelled = any(type_name(step.get("type")) in library.label_loaders for step in pipeline)
    if labelled:
        dataset.pipeline = cfg.tta_pipeline
    else:
        dataset.pipeline = _without_labels(cfg.tta_pipeline, library.label_loaders)


def _without_labels(pipeline: list[dict], loaders: frozenset[str]) -> list[dict]:
    """A TTA pipeline without the steps that load labels, for a data set that has none."""
    kept = []
    for step in pipeline:
        if type_name(step.get("type")) in loaders:
            continue
        if type_name(step.get("type")) == "TestTimeAug":
            branches = [_without_labels(branch, loaders) for branch in step["transforms"]]
            step = {**step, "transforms": [branch for branch in branches if branch]}
        kept.append(step)
    return kept
