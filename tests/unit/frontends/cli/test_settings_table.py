from flashpool.frontends.cli import settings_table
from flashpool.frontends.settings.table import Settings, table, variable


def test_narrow_terminals_get_a_list_that_fits() -> None:
    settings = Settings.from_environ({"FLASHPOOL_SLOTS": "3", "FLASHPOOL_TOKEN": "hush"})
    text = settings_table.as_list(settings, 60)
    assert "FLASHPOOL_SLOTS = 3 (from environment; default: " in text
    assert "hush" not in text
    assert all(variable(name) in text for name in table())
    meanings = [line for line in text.splitlines() if line.startswith("    ")]
    assert max(map(len, meanings)) <= 60


def test_piped_output_fits_eighty_columns() -> None:
    text = settings_table.as_table(Settings.from_environ({}))
    assert "FLASHPOOL_SLOTS = " in text
    meanings = [line for line in text.splitlines() if line.startswith("    ")]
    assert max(map(len, meanings)) <= 80


def test_the_changed_settings_are_those_that_differ_from_defaults() -> None:
    settings = Settings.from_environ({"FLASHPOOL_SLOTS": "3", "FLASHPOOL_PORT": "8000"})
    assert list(settings_table.chosen(settings, changed=True)) == ["slots"]
    assert "FLASHPOOL_PORT" not in settings_table.as_table(settings, changed=True)
