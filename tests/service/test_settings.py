import os
from pathlib import Path

import pytest

from model.engines.cpu import available_cpus
from model.engines.settings import EngineSettings
from service.cli.options import ENGINE_OPTIONS
from service.settings import InvalidSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("MAE_")]:
        monkeypatch.delenv(variable)


def test_defaults_work_with_nothing_set() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.weights is None
    assert settings.api_keys == ()
    assert settings.decode_threads == available_cpus()
    assert (settings.max_body_bytes, settings.max_inflight_bytes) == (32_000_000, 256_000_000)


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_contract_names_them_all() -> None:
    names = """HOST PORT MODEL WEIGHTS IMAGE_SIZE PREPROCESS BACKEND PRECISION LANES MAX_BATCH MAX_DELAY_MS QUEUE_IMAGES
        MAX_INFLIGHT_MB DECODE_THREADS MAX_BODY_MB MAX_PIXELS MAX_DECODE_MB MAX_IMAGES REQUEST_TIMEOUT_S DRAIN_TIMEOUT_S
        ENGINE_CACHE API_KEYS LOG_FORMAT HEADS NORM_PIX_LOSS CUDA_GRAPHS COMPILE_TIMEOUT_S PARITY_COSINE
        PARITY_PSNR_DB PARITY_LOSS HTTP_WORKERS HEADER_TIMEOUT_S BODY_STALL_S DRIFT_SAMPLE"""
    assert {name.upper() for name in Settings.model_fields} == set(names.split())


VALUES = {
    "HOST": ("127.0.0.1", "127.0.0.1"),
    "PORT": ("0", 0),
    "HTTP_WORKERS": ("2", 2),
    "MODEL": ("mae_base", "mae_base"),
    "WEIGHTS": ("hf:facebook/vit-mae-base", "hf:facebook/vit-mae-base"),
    "HEADS": ("12,16", (12, 16)),
    "NORM_PIX_LOSS": ("true", True),
    "IMAGE_SIZE": ("448", 448),
    "PREPROCESS": ('{"resize": "squash"}', {"resize": "squash"}),
    "BACKEND": ("torch", "torch"),
    "PRECISION": ("bf16", "bf16"),
    "LANES": ("3", 3),
    "MAX_BATCH": ("64", 64),
    "CUDA_GRAPHS": ("yes", True),
    "COMPILE_TIMEOUT_S": ("60", 60),
    "PARITY_COSINE": ("0.99", 0.99),
    "PARITY_PSNR_DB": ("30", 30.0),
    "PARITY_LOSS": ("0.1", 0.1),
    "MAX_DELAY_MS": ("2.5", 2.5),
    "QUEUE_IMAGES": ("100", 100),
    "MAX_INFLIGHT_MB": ("64", 64.0),
    "DECODE_THREADS": ("5", 5),
    "MAX_BODY_MB": ("0.5", 0.5),
    "MAX_PIXELS": ("1000", 1000),
    "MAX_DECODE_MB": ("64.5", 64.5),
    "MAX_IMAGES": ("7", 7),
    "REQUEST_TIMEOUT_S": ("1.5", 1.5),
    "DRAIN_TIMEOUT_S": ("0", 0.0),
    "ENGINE_CACHE": ("/tmp/engines", Path("/tmp/engines")),
    "API_KEYS": (" one, two ,,", ("one", "two")),
    "LOG_FORMAT": ("json", "json"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_and_a_flag_say_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = VALUES[name]
    assert getattr(load_settings(**{name.lower(): text}), name.lower()) == value
    monkeypatch.setenv(f"MAE_{name}", text)
    assert getattr(load_settings(), name.lower()) == value


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PORT", "1234")
    assert load_settings(port="4321").port == 4321
    assert load_settings(port=None).port == 1234


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("NORM_PIX_LOSS", "perhaps"),
        ("IMAGE_SIZE", "0"),
        ("PREPROCESS", "squash"),
        ("PREPROCESS", "[1]"),
        ("BACKEND", "onnx"),
        ("PRECISION", "int4"),
        ("LANES", "0"),
        ("MAX_BATCH", "0"),
        ("MAX_BATCH", "4097"),
        ("CUDA_GRAPHS", "2"),
        ("PARITY_COSINE", "1.1"),
        ("PARITY_COSINE", "nan"),
        ("PARITY_PSNR_DB", "-1"),
        ("PARITY_LOSS", "-0.1"),
        ("MAX_DELAY_MS", "-1"),
        ("MAX_DELAY_MS", "nan"),
        ("QUEUE_IMAGES", "1.5"),
        ("MAX_INFLIGHT_MB", "inf"),
        ("DECODE_THREADS", "many"),
        ("MAX_BODY_MB", "0"),
        ("MAX_BODY_MB", "inf"),
        ("MAX_PIXELS", "50 MP"),
        ("MAX_IMAGES", "0"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("REQUEST_TIMEOUT_S", "inf"),
        ("DRAIN_TIMEOUT_S", "-1"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_names_its_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"MAE_{name}", value)
    with pytest.raises(InvalidSettings, match=rf"^{name}: .*given: ") as refusal:
        load_settings()
    assert "\n" not in str(refusal.value)


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PORT", "http")
    monkeypatch.setenv("MAE_LANES", "none")
    with pytest.raises(InvalidSettings, match=r"LANES: .*PORT: "):
        load_settings()


def test_one_body_must_fit_into_all_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_MAX_BODY_MB", "300")
    with pytest.raises(InvalidSettings, match=r"^MAX_BODY_MB \(300\.0\) is more than MAX_INFLIGHT_MB \(256\.0\)$"):
        load_settings()
    monkeypatch.setenv("MAE_MAX_INFLIGHT_MB", "300")
    assert load_settings().max_body_mb == 300


@pytest.mark.parametrize("name", VALUES)
def test_an_empty_variable_is_not_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"MAE_{name}", "")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("MAE_MAXBATCH", "did you mean MAE_MAX_BATCH?"),
        ("MAE_WEIGHT", "did you mean MAE_WEIGHTS?"),
        ("MAE_API_KEY", "did you mean MAE_API_KEYS?"),
        ("MAE_PORTS", "did you mean MAE_PORT?"),
        ("MAE_ZZZ", "MAE_ZZZ is no setting"),
    ],
)
def test_an_unknown_variable_is_refused(variable: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "5")
    with pytest.raises(InvalidSettings) as refusal:
        load_settings()
    assert variable in str(refusal.value)
    assert hint in str(refusal.value)


@pytest.mark.parametrize("service", ["MAE", "MAE_SERVE", "MAE_2_WEB"])
def test_what_kubernetes_says_of_its_services_is_ignored(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Service links, as https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables."""
    links = {
        "SERVICE_HOST": "10.0.0.11",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.11:8000",
        "PORT_8000_TCP": "tcp://10.0.0.11:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.11",
        "PORT_53_UDP_ADDR": "10.0.0.11",
        "PORT_7_SCTP": "sctp://10.0.0.11:7",
    }
    for name, value in links.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    assert load_settings().port == 8000


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_API_KEYS", "hush-hush")
    assert "hush" not in repr(load_settings())
    for wrong in ({"port": "http"}, {"max_body_mb": 1000}, {"preprocess": "{"}):
        with pytest.raises(InvalidSettings) as refusal:
            load_settings(**wrong)
        assert "hush" not in str(refusal.value)
    with pytest.raises(InvalidSettings, match=r"^API_KEYS: ") as refusal:
        load_settings(api_keys={"hush-hush": 1})
    assert "hush" not in str(refusal.value)


def test_the_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert load_settings().engine_cache == tmp_path / ".cache" / "mae-serve"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert load_settings().engine_cache == tmp_path / "elsewhere" / "mae-serve"


def test_the_engine_is_told_what_concerns_it() -> None:
    given = {name.lower(): text for name, (text, _) in VALUES.items()}
    engine = load_settings(**given).engine
    assert type(engine) is EngineSettings
    assert vars(engine) == {name: VALUES[name.upper()][1] for name in EngineSettings.model_fields}


def test_an_engine_setting_is_a_setting_and_an_option_of_commands_without_another_list() -> None:
    for name, field in EngineSettings.model_fields.items():
        assert Settings.model_fields[name].description == field.description
        assert ENGINE_OPTIONS[name].annotation == field.annotation


@pytest.mark.parametrize("keys", [",", " ", " , ,"])
def test_keys_that_hold_no_key_do_not_leave_the_service_open(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_API_KEYS", keys)
    with pytest.raises(InvalidSettings, match="API_KEYS: there is no key in it"):
        load_settings()
