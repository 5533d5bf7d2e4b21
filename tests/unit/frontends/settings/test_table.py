import dataclasses
import pickle
import sys

import pytest

from flashpool.frontends.settings.table import Settings, SettingsError, table, unknown, variable
from flashpool.frontends.settings.worker_env import worker_env


def test_defaults_suit_a_developers_machine() -> None:
    settings = Settings.from_environ({})
    assert (settings.host, settings.port, settings.admin_host) == ("127.0.0.1", 8000, "127.0.0.1")
    assert settings.base_python == sys.executable
    assert set(settings.origins.values()) == {"default"}


def test_every_field_has_a_row_with_an_explanation() -> None:
    rows = table()
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert fields - set(rows) == {"origins", "worker_env", "on_pod"}
    assert all(row.meaning.endswith(".") and row.kind.accepts for row in rows.values())


def test_variables_override_defaults_and_their_origin_is_recorded() -> None:
    settings = Settings.from_environ({"FLASHPOOL_PORT": " 18080 ", "FLASHPOOL_SLOTS": ""})
    assert settings.port == 18080
    assert settings.origins["port"] == "environment"
    assert settings.origins["slots"] == "default"


def test_all_invalid_values_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(
            {"FLASHPOOL_PORT": "70000", "FLASHPOOL_GRACE_S": "soon", "FLASHPOOL_SPARES": "1_0"}
        )
    problems = caught.value.problems
    assert len(problems) == 3
    assert "FLASHPOOL_PORT='70000'" in problems[0]
    assert "from 0 to 65535" in problems[0]
    assert pickle.loads(pickle.dumps(caught.value)).problems == problems


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "-1"),
        ("PORT", "８０"),
        ("CALL_TIMEOUT_S", "nan"),
        ("CALL_TIMEOUT_S", "inf"),
        ("CALL_TIMEOUT_S", "0"),
        ("ALLOW_OPEN", "maybe"),
        ("START_METHOD", "forkserver"),
        ("MEMORY_TRICKS", "all"),
        ("MEMORY_TRICKS", "layout,placement"),
        ("BASE_PYTHON", "/no/such/python"),
        ("PRELOAD", "numpy,not-a-module"),
        ("TOKEN", "with blank"),
        ("TOKEN", "ünicode"),
    ],
)
def test_invalid_values_are_refused(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^FLASHPOOL_{name}="):
        Settings.from_environ({f"FLASHPOOL_{name}": text})


def test_an_invalid_secret_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({"FLASHPOOL_TOKEN": "hush hush"})
    assert "hush" not in str(caught.value)


def test_none_lifts_a_limit() -> None:
    settings = Settings.from_environ({"FLASHPOOL_CALL_TIMEOUT_S": "none"})
    assert settings.call_timeout_s is None
    assert settings.to_pool_config().call_timeout_s is None


def test_lists_are_split_and_deduplicated() -> None:
    settings = Settings.from_environ({"FLASHPOOL_PRELOAD": "numpy, pandas.io numpy"})
    assert settings.to_pool_config().preload == ("numpy", "pandas.io")


@pytest.mark.parametrize(
    ("text", "tricks"),
    [
        (None, ("layout", "immortal", "mappings")),
        ("none", ()),
        ("Layout, immortal", ("layout", "immortal")),
        ("mappings,untried", ("mappings", "untried")),
    ],
)
def test_memory_tricks_are_parsed(text: str | None, tricks: tuple[str, ...]) -> None:
    environ = {} if text is None else {"FLASHPOOL_MEMORY_TRICKS": text}
    assert Settings.from_environ(environ).to_pool_config().memory_tricks == tricks


def test_unknown_variables_get_a_hint() -> None:
    sentences = unknown({"FLASHPOOL_PROT": "1", "FLASHPOOL_XYZZY": "1", "PATH": ""})
    assert len(sentences) == 2
    assert "did you mean FLASHPOOL_PORT?" in sentences[0]
    assert "flashpool settings" in sentences[1]


def test_settings_reach_the_pool_config() -> None:
    config = Settings.from_environ(
        {"FLASHPOOL_OUTPUT_LIMIT_KB": "3", "FLASHPOOL_SPARES": "2", "FLASHPOOL_MEMORY_MB": "64"}
    ).to_pool_config()
    assert (config.output_limit, config.max_spares, config.memory_mb) == (3072, 2, 64)
    assert variable("port") == "FLASHPOOL_PORT"


def test_a_pod_has_other_defaults_that_settings_override() -> None:
    pod = {
        "RUNPOD_POD_ID": "p1",
        "PORT": "80",
        "MINE": "1",
        "RUNPOD_API_KEY": "the client's",
        "RUNPOD_AI_API_KEY": "the worker's",
        "RUNPOD_WEBHOOK_GET_JOB": "http://x",
        "FLASHPOOL_TOKEN": "ours",
    }
    settings = Settings.from_environ(pod)
    assert (settings.host, settings.port) == ("0.0.0.0", 80)
    assert settings.origins["port"] == "pod"
    assert settings.worker_env.keys() == {"RUNPOD_POD_ID", "PORT", "MINE", "RUNPOD_API_KEY"}
    ours = Settings.from_environ(
        {**pod, "FLASHPOOL_PASS_ENV": "none", "FLASHPOOL_HOST": "127.0.0.1"}
    )
    assert "MINE" not in ours.worker_env
    assert ours.host == "127.0.0.1"


def test_the_error_for_a_platforms_port_names_its_origin() -> None:
    with pytest.raises(SettingsError, match="from the pod"):
        Settings.from_environ({"RUNPOD_POD_ID": "p1", "PORT": "eighty"})


class TestWorkerEnvironment:
    environ = {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HOME": "/cache",
        "DATABASE_URL": "postgres://",
        "MY_A": "a",
        "MY_B": "b",
        "FLASHPOOL_TOKEN": "t",
        "RUNPOD_API_KEY": "k",
        "RUNPOD_AI_API_KEY": "k",
        "FLASHPOOL_VOLUME_KEY": "k",
        "FLASHPOOL_INDEX_URL": "https://me:secret@host/",
        "FLASHPOOL_EXTRA_INDEX_URLS": "https://me:secret@host/",
    }

    def test_only_allowed_variables_are_passed(self) -> None:
        assert set(worker_env(self.environ, ())) == {
            "PATH",
            "LC_ALL",
            "CUDA_VISIBLE_DEVICES",
            "HF_HOME",
        }

    def test_patterns_add_variables(self) -> None:
        assert {"MY_A", "MY_B"} <= set(worker_env(self.environ, ("MY_*",)))

    def test_secrets_match_no_pattern(self) -> None:
        seen = worker_env(self.environ, ("*", "RUNPOD_*", "FLASHPOOL_TOKE?"))
        assert "DATABASE_URL" in seen
        assert not {name for name in seen if "KEY" in name or "TOKEN" in name or "URLS" in name}
        assert "FLASHPOOL_INDEX_URL" not in seen

    def test_a_secret_passes_by_its_exact_name(self) -> None:
        seen = worker_env(self.environ, ("RUNPOD_API_KEY",))
        assert seen["RUNPOD_API_KEY"] == "k"
        assert "RUNPOD_AI_API_KEY" not in seen


def test_a_secret_may_be_in_a_file(tmp_path) -> None:
    path = tmp_path / "token"
    path.write_text("from-a-file\n")
    settings = Settings.from_environ({"FLASHPOOL_ADMIN_TOKEN_FILE": str(path)})
    assert settings.admin_token == "from-a-file"
    assert unknown({"FLASHPOOL_ADMIN_TOKEN_FILE": str(path)}) == []
    both = {"FLASHPOOL_TOKEN": "itself", "FLASHPOOL_TOKEN_FILE": str(path)}
    assert Settings.from_environ(both).token == "itself"
    assert unknown({"FLASHPOOL_PORT_FILE": str(path)}) != []


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_secret_file_without_a_secret_is_refused(tmp_path, text) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match="FLASHPOOL_TOKEN_FILE"):
        Settings.from_environ({"FLASHPOOL_TOKEN_FILE": str(path)})


def test_the_admin_port_may_be_none() -> None:
    assert Settings.from_environ({"FLASHPOOL_ADMIN_PORT": "none"}).admin_port is None
