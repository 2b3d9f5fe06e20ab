"""Checkpoints and modules as models: their config.json and where their tensors are."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from moeloom.model_config import ModelError, quantisation, read_config
from moeloom.runtime.checkpoint import CheckpointFiles


class ModuleWeights:
    """The parameters and buffers of a module, as a source for `runtime.pack`; tensors are shared, not copied."""

    def __init__(self, module: nn.Module):
        self.tensors: Mapping[str, Tensor] = module.state_dict()

    def get(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ModelError(f"the module has no tensor '{name}'; import the module that the program was made from")
        return self.tensors[name]


class Checkpoint(CheckpointFiles):
    """A directory with config.json and safetensors files.

    Raises ModelError for a config that is missing or malformed, and for a quantisation that moeloom does not read;
    ArtifactError as `CheckpointFiles`.
    """

    def __init__(self, directory: str | Path):
        if not Path(directory).is_dir():
            raise ModelError(f"there is no directory {directory}; give a checkpoint directory or a config.json")
        self.config = read_config(Path(directory) / "config.json")
        self.quantisation = quantisation(self.config, str(directory))
        super().__init__(directory)
