"""A whole model whose weights are pages of a file, shared by the processes of a machine.

The system reads a page when it is used and may drop it again, so that the weights are no
memory of a process's own. One process of every machine writes the file part by part, in the
dtype of the passes; it has no name any more once all have opened it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from spectrim.models.offload.model import StreamedModel
from spectrim.runtime.machine import shared_directory
from spectrim.runtime.space import check_space


def map_weights(streamed: StreamedModel) -> Any:
    """Return the model of `streamed` with every tensor in place, mapped from a file.

    All processes have to call it. Raises InputError where the disk has no room for the weights,
    and what reading the checkpoint raises.
    """
    with shared_directory(lambda place: _write(streamed, place)) as place:
        for number in range(len(streamed.parts)):
            tensors = load_file(_file(place, number))
            streamed.model.load_state_dict(tensors, strict=False, assign=True)
    streamed.model.tie_weights()
    return streamed.model.requires_grad_(True)


def _write(streamed: StreamedModel, place: Path) -> None:
    largest = max(map(streamed.bytes, streamed.parts))
    check_space(place, streamed.total_bytes, largest)
    for number, name in enumerate(streamed.parts):
        with streamed.resident(name):
            tensors = streamed.state(name)
            save_file({key: t.contiguous() for key, t in tensors.items()}, _file(place, number))


def _file(place: Path, number: int) -> Path:
    return place / f"{number}.safetensors"
