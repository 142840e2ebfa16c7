"""Settings: precedence, refusals, and the rule about open addresses."""

from __future__ import annotations

import hashlib

import pytest

from cots_model.errors import ConfigError, InputError
from service.settings import MIB, Settings, is_loopback

HASH = hashlib.sha256(b"key").hexdigest()


def test_settings_defaults_are_the_limits_of_the_contract() -> None:
    settings = Settings.load()
    assert settings.max_body_bytes == 20 * MIB
    assert settings.max_text_bytes == 8 * 1024
    assert settings.max_k == 1000
    assert settings.max_queries == 256
    assert settings.max_image_pixels == 50_000_000
    assert settings.host == "127.0.0.1"


def test_settings_flags_go_over_environment_over_file(tmp_path, monkeypatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nmax_k: 11\nqueue_size: 7\n", "utf-8")
    monkeypatch.setenv("COTS_PORT", "2")
    monkeypatch.setenv("COTS_MAX_K", "12")
    settings = Settings.load(file, port=3, host=None)
    assert (settings.port, settings.max_k, settings.queue_size) == (3, 12, 7)
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 8000", "prot"),
        ("port: many", "port"),
        ("port: 70000", "port"),
        ("max_k: 0", "max_k"),
        ("- a\n- b", "YAML mapping"),
        ("a: [", "YAML mapping"),
        ("just words", "YAML mapping"),
        ("api_key_sha256: [secret]", "api_key_sha256"),
        ("drain_s: 30\ngrace_s: 20", "grace_s"),
    ],
)
def test_settings_file_with_a_fault_is_refused_in_one_line(tmp_path, text, words) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        Settings.load(file)
    assert "\n" not in str(caught.value)


def test_settings_file_that_is_missing_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Settings.load(tmp_path / "none.yaml")


def test_settings_empty_file_gives_the_defaults(tmp_path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("", "utf-8")
    assert Settings.load(file).port == 8000


def test_settings_keys_come_as_a_list_with_commas(monkeypatch) -> None:
    monkeypatch.setenv("COTS_API_KEY_SHA256", f"{HASH.upper()}, {'0' * 64}")
    assert Settings.load().api_key_sha256 == (HASH, "0" * 64)


def test_settings_empty_variable_counts_as_not_set(tmp_path, monkeypatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"api_key_sha256: [{HASH}]\n", "utf-8")
    for name in ("COTS_API_KEY_SHA256", "COTS_PORT", "COTS_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    settings = Settings.load(file)
    assert (settings.api_key_sha256, settings.port, settings.log_level) == ((HASH,), 8000, "INFO")


@pytest.mark.parametrize("level", ["debug", "Debug", "DEBUG"])
def test_settings_log_level_is_taken_in_either_case(monkeypatch, level) -> None:
    monkeypatch.setenv("COTS_LOG_LEVEL", level)
    assert Settings.load().log_level == "DEBUG"
    with pytest.raises(ConfigError, match="log_level"):
        Settings.load(log_level="loud")


def test_trusted_hosts_are_checked_on_loopback_without_keys_or_when_named(monkeypatch) -> None:
    assert Settings.load().trusted_hosts() == frozenset()
    assert Settings.load(api_key_sha256=HASH).trusted_hosts() is None
    assert Settings.load(host="0.0.0.0", allow_public=True).trusted_hosts() is None
    monkeypatch.setenv("COTS_ALLOWED_HOSTS", "Photos.example.org, 10.0.0.7")
    named = Settings.load(host="0.0.0.0", allow_public=True).trusted_hosts()
    assert named == {"photos.example.org", "10.0.0.7"}
    for wrong in ("http://a", "a/b", "*"):
        with pytest.raises(ConfigError, match="allowed_hosts"):
            Settings.load(allowed_hosts=wrong)


def test_public_address_needs_keys_or_permission() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org"):
        with pytest.raises(InputError, match="--allow-public"):
            Settings.load(host=host).check_bind()
        Settings.load(host=host, allow_public=True).check_bind()
        Settings.load(host=host, api_key_sha256=HASH).check_bind()
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        Settings.load(host=host).check_bind()
        assert is_loopback(host)
