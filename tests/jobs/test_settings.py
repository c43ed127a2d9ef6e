"""docs/configuration.md says what the settings are, and a setting has a meaning."""

from pathlib import Path

from jobs.config import load_config
from jobs.settings import page, settings

ROOT = Path(__file__).parents[2]


def test_the_page_of_settings_is_the_one_that_the_code_prints():
    assert (ROOT / "docs" / "configuration.md").read_text() == page(), "python -m jobs.settings > docs/configuration.md"


def test_every_setting_says_what_it_means():
    assert [one.key for one in settings() if not one.meaning] == []


def test_every_plain_setting_of_the_page_can_be_set_to_its_default():
    keys = {one.key for one in settings()}  # among them sections that are null unless told
    plain = [one for one in settings() if "[" not in one.key and one.key.rpartition(".")[0] not in keys]
    assert len(plain) > 30
    assert load_config(None, [f"{one.key}={one.default.strip('`')}" for one in plain]) == load_config(None)
