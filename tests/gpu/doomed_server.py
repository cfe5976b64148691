"""The real server, but SIGUSR1 makes the next batch read far outside a tensor on the device.

So the device asserts, and nothing that CUDA is asked for in this process succeeds any more: the errors that the engine
then meets are real ones. Without CUDA the batch raises FatalEngineError, which proves the tests alone.
"""

import signal
import sys

from model.engines.base import FatalEngineError, ServedModel
from model.engines.build import build
from service.api.app import create_app
from service.logs import configure_logging
from service.server import serve
from service.settings import load_settings

doomed = False


def doom(number: int, frame: object) -> None:
    global doomed
    doomed = True


def break_device() -> None:
    """Makes a kernel index out of range. The launch itself succeeds; who waits for the device hears of it."""
    import torch

    table = torch.zeros(4, device="cuda")
    table[torch.full((1,), 10**6, device="cuda")].add_(1)


def build_doomed(settings, progress) -> ServedModel:
    served = build(settings, progress)
    engine = served.engine
    embed = engine.embed

    def doomed_embed(lane, patches, visible_indices):
        if doomed:
            if not engine.info.device.startswith("cuda"):
                raise FatalEngineError("pretending to have no device any more")
            break_device()
        return embed(lane, patches, visible_indices)

    engine.embed = doomed_embed  # type: ignore[method-assign]
    return served


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, doom)
    settings = load_settings()
    configure_logging(settings.log_format)
    sys.exit(serve(create_app(settings, build_doomed), settings.host, settings.port))
