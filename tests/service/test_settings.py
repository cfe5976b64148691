"""Settings from variables, flags and platforms: their defaults, what is wrong, and whom they concern."""

from pathlib import Path

import pytest

from model.engines.cpu import available_cpus
from model.engines.settings import EngineSettings
from service.cli.options import ENGINE_OPTIONS
from service.settings import InvalidSettings, Settings, load_settings

pytestmark = pytest.mark.usefixtures("bare_environment")


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
    names = """HOST PORT MODEL WEIGHTS IMAGE_SIZE PREPROCESS BACKEND PRECISION LANES JOINED_LANE MAX_BATCH MAX_DELAY_MS
        QUEUE_IMAGES
        MAX_INFLIGHT_MB DECODE_THREADS MAX_BODY_MB MAX_PIXELS MAX_DECODE_MB MAX_IMAGES REQUEST_TIMEOUT_S DRAIN_TIMEOUT_S
        ENGINE_CACHE API_KEYS LOG_FORMAT HEADS NORM_PIX_LOSS CUDA_GRAPHS COMPILE_TIMEOUT_S PARITY_COSINE
        PARITY_PSNR_DB PARITY_LOSS HTTP_WORKERS HEADER_TIMEOUT_S BODY_STALL_S DRIFT_SAMPLE
        ROOT_PATH HEALTH_ROUTE PREDICT_ROUTE CORS_ORIGINS SERVED_NAME CACHE_MB
        INDEX INDEX_PATHS
        API_KEYS_FILE KEY_MAX_REQUESTS KEY_IMAGES_PER_S KEYED_PATHS MAX_CONNECTIONS
        LOAD_TIMEOUT_S"""
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
    "JOINED_LANE": ("off", "off"),
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
    "MAX_CONNECTIONS": ("100", 100),
    "LOG_FORMAT": ("json", "json"),
    "ROOT_PATH": ("/a/mae/", "/a/mae"),
    "HEALTH_ROUTE": ("/v1/endpoints/1/deployedModels/2", "/v1/endpoints/1/deployedModels/2"),
    "PREDICT_ROUTE": ("/v1/endpoints/1/deployedModels/2:predict", "/v1/endpoints/1/deployedModels/2:predict"),
    "CORS_ORIGINS": ("https://a.example, http://localhost:3000,,", ("https://a.example", "http://localhost:3000")),
    "SERVED_NAME": ("my shelf/1", "my shelf/1"),
    "CACHE_MB": ("0.5", 0.5),
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
        ("JOINED_LANE", "yes"),
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
        ("ROOT_PATH", "mae"),
        ("ROOT_PATH", "/a b"),
        ("ROOT_PATH", "https://a.example/mae"),
        ("ROOT_PATH", "/embed"),
        ("ROOT_PATH", "/v2/mae/"),
        ("HEALTH_ROUTE", "/health/"),
        ("HEALTH_ROUTE", "/{health}"),
        ("PREDICT_ROUTE", "predict"),
        ("PREDICT_ROUTE", "/predict?x=1"),
        ("PREDICT_ROUTE", "/embed"),
        ("PREDICT_ROUTE", "/v1/embeddings"),
        ("CORS_ORIGINS", "https://a.example/"),
        ("CORS_ORIGINS", "a.example"),
        ("CORS_ORIGINS", "https://*.example"),
        ("SERVED_NAME", " "),
        ("CACHE_MB", "-1"),
        ("CACHE_MB", "inf"),
        ("SERVED_NAME", "a\nb"),
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


@pytest.mark.parametrize(
    ("variables", "port"),
    [
        ({"PORT": "8080"}, 8080),
        ({"AIP_HTTP_PORT": "7080"}, 7080),
        ({"PORT": "8080", "AIP_HTTP_PORT": "7080"}, 7080),
        ({"PORT": "8080", "AIP_HTTP_PORT": "7080", "MAE_PORT": "9000"}, 9000),
        ({"PORT": "8080", "MAE_PORT": ""}, 8080),
        ({"PORT": "8080", "MAE_PORT": "tcp://10.0.0.11:8000"}, 8080),
        ({"PORT": "", "AIP_HTTP_PORT": ""}, 8000),
    ],
)
def test_the_port_of_a_platform_counts_where_none_is_set(
    variables: dict[str, str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings().port == port
    assert load_settings(port="1").port == 1


def test_a_wrong_port_of_a_platform_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HTTP_PORT", "http")
    with pytest.raises(InvalidSettings, match=r"^AIP_HTTP_PORT: .*given: 'http'"):
        load_settings()


def test_the_routes_of_vertex_come_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/1/deployedModels/2")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1/deployedModels/2:predict")
    settings = load_settings()
    assert settings.health_route == "/v1/endpoints/1/deployedModels/2"
    assert settings.predict_route == "/v1/endpoints/1/deployedModels/2:predict"
    assert load_settings(predict_route="/predict").predict_route == "/predict"


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


@pytest.mark.parametrize(
    ("given", "delay", "told"), [("auto", 5, "off"), ("auto", 0, "auto"), ("on", 5, "on"), ("off", 0, "off")]
)
def test_auto_makes_no_joined_lane_where_it_would_never_run(given: str, delay: float, told: str) -> None:
    assert load_settings(joined_lane=given, max_delay_ms=delay).engine.joined_lane == told


def test_an_engine_setting_is_a_setting_and_an_option_of_commands_without_another_list() -> None:
    for name, field in EngineSettings.model_fields.items():
        assert Settings.model_fields[name].description == field.description
        assert ENGINE_OPTIONS[name].annotation == field.annotation
