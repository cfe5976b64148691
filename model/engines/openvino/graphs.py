"""The graphs of a model in OpenVINO's format: how their files are named, and how they are made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model.engines.openvino.runtime import import_openvino

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint
    from model.config import MAEConfig, Preprocessing

ENCODER_FILE, DECODER_FILE = "encoder.xml", "decoder.xml"


def write_graphs(checkpoint: Checkpoint, config: MAEConfig, preprocessing: Preprocessing, folder: Path) -> None:
    """Writes the graphs of `checkpoint` into `folder`, with a dynamic batch and a dynamic number of visible patches."""
    from model.engines.export import build_graphs, export_programs, ignore_torch_deprecation

    openvino = import_openvino()
    for name, program in export_programs(build_graphs(checkpoint, config, preprocessing), config).items():
        with ignore_torch_deprecation():
            converted = openvino.convert_model(program)
        openvino.save_model(converted, str(folder / f"{name}.xml"), compress_to_fp16=False)
