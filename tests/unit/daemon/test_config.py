"""Is a wrong configuration refused with the file and the key that are wrong?"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from nvstreamd.config import Config, load_config
from nvstreamd.errors import ConfigError


def written(directory: Path, text: str) -> Path:
    path = directory / "nvstreamd.toml"
    path.write_text(text)
    return path


def test_sizes_are_written_as_people_write_them(tmp_path: Path) -> None:
    text = 'memory = "60MiB"\nkv_memory = "1.5 GiB"\n[[models]]\nname = "a"\npath = "/a.gguf"\nbudget = 1000000\n'
    config = load_config(written(tmp_path, text), {})
    assert (config.memory, config.kv_memory) == (60 << 20, 3 << 29)
    assert config.models[0].budget == 1000000


def test_the_command_line_wins(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, 'memory = "60MiB"\nthreads = 3\n'), {"memory": "1GiB"})
    assert (config.memory, config.threads) == (1 << 30, 3)


WRONG = [
    ('memory = "lots"', "memory"),
    ("memory = 0", "memory"),
    ("memory = -5", "memory"),
    ('memory = "9999999TiB"', "memory"),
    ("threads = 0", "threads"),
    ("thread = 2", "thread"),
    ('drain_seconds = "soon"', "drain_seconds"),
    ('[[models]]\nname = "../../etc/passwd"\npath = "/x"', "models.0.name"),
    ('[[models]]\nname = "x"', "models.0.path"),
    ('backends = ["warp"]', "backends"),
    ("backends = []", "backends"),
    # The daemon ends whatever runs under these: never root's, nobody's or what is no uid.
    ('engine_user = "x"\nengine_uids = { first = 0, count = 9 }', "engine_uids.first"),
    ('engine_user = "x"\nengine_uids = { first = 65530, count = 9 }', "engine_uids"),
    ('engine_user = "x"\nengine_uids = { first = 4294967290, count = 9 }', "engine_uids"),
    ('engine_user = "x"\nengine_uids = { first = 70000, count = 2 }', "engine_uids.count"),
]


@pytest.mark.parametrize(("text", "key"), WRONG)
def test_a_wrong_value_names_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_config(path, {})
    assert str(path) in refused.value.message and f" {key}" in refused.value.message
    assert refused.value.hint


def test_uids_of_engines_need_an_account_for_imports(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine_uids needs engine_user"):
        load_config(written(tmp_path, "engine_uids = { first = 70000, count = 9 }"), {})


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", written(tmp_path, "= nothing =")):
        with pytest.raises(ConfigError, match=path.name):
            load_config(path, {})


def test_a_configuration_does_not_change() -> None:
    config = load_config(None, {})
    assert isinstance(config, Config)
    with pytest.raises(ValidationError):
        config.threads = 9
