"""Extensions of MMEngine and MMPreTrain that ``import mmlocal`` adds by their public functions.

MMEngine learns to read ``.safetensors`` files and folders with a checkpoint. MMPreTrain learns the
names of our classification models. Nothing here imports these libraries: each function gets the
module of the library that is being imported.
"""

from __future__ import annotations

from types import ModuleType

from mmlocal.paths import home


def add_loader(checkpoint: ModuleType) -> None:
    """Let MMEngine read ``.safetensors`` files and folders. Other files load as before.

    Args:
        checkpoint: the module ``mmengine.runner.checkpoint``.
    """
    load_other = checkpoint.load_from_local

    def load_from_local(filename: str, map_location: object = None) -> dict:
        from mmlocal.checkpoints.files import find_file, is_safetensors, load_file

        path = find_file(filename)
        if is_safetensors(path):
            return load_file(path, map_location)
        return load_other(str(path), map_location)

    checkpoint.CheckpointLoader.register_scheme("", load_from_local, force=True)


def add_models(model: ModuleType) -> None:
    """Let MMPreTrain list and build our classification models by their names.

    Args:
        model: the module ``mmpretrain.apis.model``.
    """
    root = home()
    index = root / "configs" / "mmpretrain" / "metafile.yml"
    if index.is_file():
        model.ModelHub.register_model_index(index, config_prefix=root)
