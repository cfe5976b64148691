"""Weights in the package, in a file or in a folder: which are found, under which name, licence and digest."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import Source, locate
from model.checkpoints.native import read_metadata
from model.config import MAEConfig
from model.engines.check import check_settings
from model.engines.settings import EngineSettings

CARD = b"---\ntags:\n- vision\nlicense: cc-by-nc-4.0\n---\n# A bird\n"
FOLDER = {"config.json": b"{}", "model.safetensors": b"1", "README.md": CARD, "notes.txt": b"2"}


def folder_with(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


class TestPackaged:
    def test_the_default(self) -> None:
        source = locate(None, None)
        assert source.path.name == "mae_tiny.safetensors"
        assert source.name == "mae_tiny"
        assert source.license is not None
        assert "CC BY 4.0" in source.license
        assert source.digest == hashlib.sha256(source.path.read_bytes()).hexdigest()
        assert locate(None, "mae_tiny") == source

    def test_a_preset_without_packaged_weights_is_refused(self) -> None:
        message = "no weights of mae_base are packaged, only those of mae_tiny: pass mae_base's as WEIGHTS"
        with pytest.raises(WeightsError, match=message):
            locate(None, "mae_base")

    @pytest.mark.parametrize("model", ["mae_giant", "../weights/mae_tiny", ""])
    def test_an_unknown_preset_is_refused(self, model: str) -> None:
        with pytest.raises(WeightsError, match=f"there is no preset {model!r}: the presets are mae_tiny, "):
            locate(None, model)


HUB = "https://huggingface.co/bird/mae"


class TestFiles:
    @pytest.mark.parametrize(
        ("address", "name"),
        [
            (HUB, "hf:bird/mae"),
            (f"{HUB}/", "hf:bird/mae"),
            (f"{HUB}/tree/main", "hf:bird/mae"),
            (f"{HUB}/blob/main/run/best.pth", "hf:bird/mae/run/best.pth"),
            (f"{HUB}/resolve/v2/best.pth?download=true", "hf:bird/mae/best.pth@v2"),
            ("https://example.org/best.pth", "hf:ORG/NAME, or hf:ORG/NAME/FILE.pth for one file of it"),
        ],
    )
    def test_an_address_is_refused_with_the_name_to_give(self, address: str, name: str) -> None:
        with pytest.raises(WeightsError) as error:
            locate(address, None)
        assert str(error.value).startswith(f"{address} is an address: expected a path, or {name}")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "bird.v2.pth").write_bytes(b"anything")
        source = locate(str(tmp_path / "bird.v2.pth"), None)
        digest = "ee0874170b7f6f32b8c2ac9573c428d35b575270a66b757c2c0185d2bd09718d"  # printf anything | sha256sum
        assert source == Source(tmp_path / "bird.v2.pth", "bird.v2", None)
        assert source.digest == digest

    def test_a_file_is_not_read_whole_before_its_digest_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`mae serve` checks its settings before it loads the weights; large ones take seconds to hash."""
        (tmp_path / "bird.pth").write_bytes(b"anything")
        hashed = []
        real = hashlib.file_digest
        monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: (hashed.append(1), real(*arguments))[1])
        check_settings(EngineSettings(weights=str(tmp_path / "bird.pth"), backend="torch"))
        assert hashed == []
        source = locate(str(tmp_path / "bird.pth"), None)
        assert source.digest == source.digest and hashed == [1]

    def test_a_digest_of_what_is_gone_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bird.pth").write_bytes(b"anything")
        source = locate(str(tmp_path / "bird.pth"), None)
        (tmp_path / "bird.pth").unlink()
        with pytest.raises(WeightsError, match="does not exist"):
            _ = source.digest

    def test_a_file_of_ours_says_its_name_and_licence(self, tmp_path: Path) -> None:
        config = MAEConfig(name="bird", embed_dim=64, depth=1, num_heads=2)
        metadata = {"config": config.model_dump(), "preprocessing": {}, "license": "CC0"}
        save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors", {"mae-serve": json.dumps(metadata)})
        source = locate(str(tmp_path / "x.safetensors"), None)
        assert (source.name, source.license) == ("bird", "CC0")

    def test_other_safetensors_have_no_metadata_of_ours(self, tmp_path: Path) -> None:
        save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors", {"format": "pt"})
        assert read_metadata(tmp_path / "x.safetensors") is None

    def test_a_relative_path_and_one_from_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bird.pth").write_bytes(b"anything")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert locate("bird.pth", None).path == locate("~/bird.pth", None).path == tmp_path / "bird.pth"

    @pytest.mark.parametrize("weights", ["nowhere.pth", "", "hf-org/name"])
    def test_what_is_missing_is_refused(self, tmp_path: Path, weights: str) -> None:
        with pytest.raises(WeightsError, match="does not exist: expected a file or a folder of weights"):
            locate(str(tmp_path / "folder" / weights), None)

    def test_damaged_safetensors_are_refused(self, tmp_path: Path) -> None:
        save_file({"a": np.zeros(9)}, tmp_path / "whole")
        (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-1])
        with pytest.raises(WeightsError, match="cut is a damaged safetensors file"):
            locate(str(tmp_path / "cut"), None)

    def test_what_may_not_be_read_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bird.pth").write_bytes(b"anything")

        def forbidden(path: Path, mode: str) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", forbidden)
        with pytest.raises(WeightsError, match=r"bird.pth cannot be read \(Permission denied\)"):
            locate(str(tmp_path / "bird.pth"), None)


class TestFolders:
    def test_a_folder(self, tmp_path: Path) -> None:
        source = locate(str(folder_with(tmp_path / "bird", FOLDER)), None)
        assert (source.path, source.name, source.license) == (tmp_path / "bird", "bird", "cc-by-nc-4.0")

    def test_the_digest_is_of_what_defines_the_model(self, tmp_path: Path) -> None:
        def digest(**changes: bytes | None) -> str:
            names = {"config": "config.json", "weights": "model.safetensors", "notes": "notes.txt"}
            names |= {"card": "README.md", "processor": "preprocessor_config.json"}
            files = FOLDER | {names[key]: content for key, content in changes.items()}
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            return locate(str(folder_with(folder, files)), None).digest

        original = digest()
        assert digest() == original, "wherever the folder lies"
        assert digest(notes=b"3") == digest(card=b"") == original
        changed = {digest(config=b"{ }"), digest(weights=b"2"), digest(processor=b"{}"), digest(processor=b"[]")}
        assert len(changed | {original}) == 5

    def test_the_digest_tells_files_of_the_same_content_apart(self, tmp_path: Path) -> None:
        first = folder_with(tmp_path / "a", {"config.json": b"{}", "model.safetensors": b"1"})
        second = folder_with(tmp_path / "b", {"config.json": b"{}", "pytorch_model.bin": b"1"})
        assert locate(str(first), None).digest != locate(str(second), None).digest

    def test_shards_count(self, tmp_path: Path) -> None:
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
        files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
        shards = {"model-1.safetensors": b"1", "model-2.safetensors": b"2"}
        first = locate(str(folder_with(tmp_path / "a", files | shards)), None)
        shards["model-2.safetensors"] = b"3"
        assert locate(str(folder_with(tmp_path / "b", files | shards)), None).digest != first.digest

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"holds no model\.safetensors, .* or pytorch_model\.bin"):
            locate(str(folder_with(tmp_path / "bird", {"config.json": b"{}"})), None)

    @pytest.mark.parametrize("name", ["bird.pth", "best.pt", "last.ckpt", "a.safetensors", "w.bin", "bird.pth.tar"])
    def test_the_only_file_of_weights_stands_for_its_folder(self, tmp_path: Path, name: str) -> None:
        """As KServe's storage initializer leaves it in /mnt/models, beside files of other kinds."""
        folder = folder_with(tmp_path / "models", {name: b"1", "README.md": CARD, "args.json": b"{}"})
        source = locate(str(folder), None)
        assert source == locate(str(folder / name), None)
        assert (source.path, source.name) == (folder / name, Path(name).stem)

    def test_heads_beside_weights_are_no_weights(self, tmp_path: Path) -> None:
        """As in a folder of ONNX files."""
        folder = folder_with(tmp_path / "graphs", {"embed.onnx": b"1", "heads.safetensors": b"2"})
        with pytest.raises(WeightsError, match=r"holds no model\.safetensors, .* or pytorch_model\.bin$"):
            locate(str(folder), None)

    @pytest.mark.parametrize(
        "files", [{"a.pth": b"1", "b.pth": b"2"}, {"a.pth": b"1", "config.json": b"{}"}], ids=["two", "with a config"]
    )
    def test_where_a_folder_leaves_a_choice_the_file_must_be_named(
        self, tmp_path: Path, files: dict[str, bytes]
    ) -> None:
        with pytest.raises(WeightsError, match=r"name the file of weights itself, such as a\.pth in it"):
            locate(str(folder_with(tmp_path / "models", files)), None)

    @pytest.mark.parametrize(
        "card",
        [b"# A bird\nlicense: mit\n", b"---\ntags:\n- vision\n---\nlicense: mit\n", b"", b"---\nlicense:\n---\n"],
    )
    def test_a_card_that_names_no_licence(self, tmp_path: Path, card: bytes) -> None:
        assert locate(str(folder_with(tmp_path / "bird", FOLDER | {"README.md": card})), None).license is None
