"""OpenVINO's entries in the engine cache: graphs in float32, from which bf16 is computed too, and graphs in int8."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

from model.engines.base import EngineBuildError
from model.engines.cache import EngineCache, fingerprint
from model.engines.context import BuildContext
from model.engines.fingerprint import code_digest
from model.engines.job import Calibration, ConversionJob
from model.engines.openvino.calibration import PACKAGED_PHOTOGRAPHS, choose_photographs
from model.engines.openvino.packaged import FLOAT32, INT8, find_packaged
from model.engines.openvino.quantise import read_quantisation, require_nncf
from model.engines.parity import require_tolerance


class GraphEntries:
    """Finds or makes the entries of one model."""

    def __init__(self, context: BuildContext) -> None:
        """Nothing is read or made yet."""
        self._context = context
        self._cache = EngineCache(context.settings.engine_cache)
        self.name = f"openvino-{fingerprint(self._ingredients(FLOAT32))}"
        """The name of the float32 entry."""

    def float32(self) -> Path:
        """Returns the folder of the float32 graphs, which are made if need be."""
        job = ConversionJob(self._context.model, "openvino")
        return self._context.obtain_entry(self.name, job, unpack=partial(self._unpack, FLOAT32))

    def int8(self) -> Path:
        """Returns the folder of the int8 graphs for PRECISION=int8.

        They are those made from the photographs in `context.calibrate`. Without it they are those made last from an
        operator's photographs, or, if there never were any, those made from the packaged photographs. A sidecar file
        holds the name of the operator's entry, since a server does not have the photographs that the name depends on.
        """
        if self._context.calibrate is not None:
            folder = self._quantise(choose_photographs(self._context.calibrate))
            require_held_out_parity(folder, self._context)
            self._write_name("int8", folder.name)
            return folder
        name = self._read_operators_name("int8", "int8")
        return self._int8_of_packaged_photographs() if name is None else self.find_int8(name, "int8")

    def _int8_of_packaged_photographs(self) -> Path:
        """Returns the folder of the int8 graphs made from the packaged photographs, which are made if need be.

        A sidecar file holds the name of this entry too, so that a server without NNCF finds it.
        """
        photographs = choose_photographs(PACKAGED_PHOTOGRAPHS)
        kind = f"packaged-int8-{photographs.digest[:12]}"
        name = self._read_name(kind)
        folder = None if name is None else self._cache.find(name)
        if folder is None:
            folder = self._unpack_or_quantise(photographs)
            self._write_name(kind, folder.name)
        return folder

    def _unpack_or_quantise(self, photographs: Calibration) -> Path:
        """Takes the int8 graphs that come with the package, or else calibrates on the packaged photographs."""
        packaged = find_packaged(INT8, self._context.model, self._context.source.digest)
        if packaged is not None:

            def unpack(folder: Path) -> bool:
                is_intact = packaged.unpack(self._context.source.path, folder)
                if not is_intact:
                    require_nncf()
                return is_intact

            return self._obtain_int8(photographs, {"packaged": packaged.description.files}, unpack)
        require_nncf()
        self._context.progress(
            f"there is no int8 engine of {self._context.source.name} in the cache: one is made from the "
            f"{len(photographs.paths)} packaged photographs"
        )
        return self._quantise(photographs)

    def int8_for_auto(self) -> str | None:
        """The name of the entry that `mae compile --precision auto --calibrate` made; None if that command never ran.

        Its sidecar file is auto's own: an engine made under PRECISION=int8 changes nothing for servers under auto.
        """
        if self._context.calibrate is None:
            return self._read_operators_name("auto-int8", "auto")
        name = self._quantise(choose_photographs(self._context.calibrate)).name
        self._write_name("auto-int8", name)
        return name

    def find_int8(self, name: str | None, precision: str) -> Path:
        """Returns the folder of entry `name`, which only photographs can make anew.

        Raises:
            EngineBuildError: there is no such entry, or it is damaged.
        """
        folder = None if name is None else self._cache.find(name)
        if folder is None:
            raise self._missing_int8(precision)
        return folder

    def _quantise(self, photographs: Calibration) -> Path:
        return self._obtain_int8(photographs, {"nncf": require_nncf()})

    def _obtain_int8(
        self, photographs: Calibration, origin: dict[str, object], unpack: Callable[[Path], bool] | None = None
    ) -> Path:
        ingredients = {**self._ingredients(INT8), "photographs": photographs.digest, **origin}
        job = ConversionJob(self._context.model, "openvino", "int8", photographs=photographs)
        return self._context.obtain_entry(f"openvino-int8-{fingerprint(ingredients)}", job, unpack=unpack)

    def _unpack(self, kind: str, folder: Path) -> bool:
        """Fills `folder` with the graphs that come with the package, and returns whether there are any."""
        source = self._context.source
        packaged = find_packaged(kind, self._context.model, source.digest)
        return packaged is not None and packaged.unpack(source.path, folder)

    def _ingredients(self, kind: str) -> dict[str, object]:
        return {
            **asdict(self._context.model),
            "path": self._context.source.digest,
            "code": code_digest(kind),
            "versions": {name: version(name) for name in ("openvino", "torch")},
            "machine": platform.machine(),
        }

    def _sidecar(self, kind: str) -> str:
        return f"{kind}-{fingerprint(self._ingredients(INT8))}"

    def _read_name(self, kind: str) -> str | None:
        content = self._cache.read_sidecar(self._sidecar(kind))
        return str(content["entry"]) if content and "entry" in content else None

    def _read_operators_name(self, kind: str, precision: str) -> str | None:
        """The name of the entry of the operator's photographs; None if none was ever made.

        Raises:
            EngineBuildError: the sidecar file is damaged, and no other engine may take the place of the operator's.
        """
        exists = self._cache.has_sidecar(self._sidecar(kind))  # before it is read: another process may just write it
        name = self._read_name(kind)
        if name is None and exists:
            raise self._missing_int8(precision)
        return name

    def _missing_int8(self, precision: str) -> EngineBuildError:
        return EngineBuildError(
            f"the engine cache {self._cache.root} has no intact int8 engine of {self._context.source.name} for "
            f"these options: mae compile --precision {precision} --calibrate FOLDER makes one from photographs"
        )

    def _write_name(self, kind: str, entry: str) -> None:
        self._cache.write_sidecar(self._sidecar(kind), {"entry": entry})


def require_held_out_parity(folder: Path, context: BuildContext) -> None:
    """Holds the figures of int8 graphs on photographs that they were not calibrated on to int8's tolerance.

    Raises:
        ParityError: a figure is outside the tolerance.
    """
    require_tolerance(read_quantisation(folder).parity, context.tolerance("int8"), " of photographs held out")
