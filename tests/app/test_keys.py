"""API keys: how they are made, stored, read and compared."""

import hashlib
import hmac
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli import main
from app.exceptions import StartupError
from app.keys import ApiKey, KeyRing, append_key, is_loopback, make_key, read_keys
from app.settings import Settings
from tests.app.conftest import known_key

ALICE, ALICES = known_key("alice", "user")
ROOT, ROOTS = known_key("root", "admin")


def ring(*keys: ApiKey) -> KeyRing:
    return KeyRing(keys, allows_anonymous=False)


def test_a_key_is_long_random_and_stored_as_its_sha256_alone() -> None:
    keys = {make_key("alice", "user")[0] for _ in range(100)}
    assert len(keys) == 100
    # 43 characters of 6 bits each hold 256.
    assert all(re.fullmatch(r"gth_[A-Za-z0-9_-]{43}", key) for key in keys)
    assert ALICES.digest == hashlib.sha256(ALICE.encode()).digest()
    assert ALICES.entry == f"alice:user:{ALICES.digest.hex()}"
    assert ALICES.digest.hex() not in repr(ALICES)


def test_a_key_is_found_and_nothing_near_it() -> None:
    keys = ring(ALICES, ROOTS)
    assert keys.find(ALICE) == ALICES
    assert keys.find(ROOT) == ROOTS
    for wrong in ("", ALICE[:-1], f"{ALICE} ", ALICE.upper(), ALICES.digest.hex(), ALICES.entry):
        assert keys.find(wrong) is None


@given(st.text())
def test_any_text_is_compared(secret: str) -> None:
    assert ring(ALICES).find(secret) is None


@given(st.text(alphabet=st.characters(categories=["Cs"]), min_size=1))
def test_so_are_lone_surrogates(secret: str) -> None:
    assert ring(ALICES).find(secret) is None


def test_every_stored_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    in_constant_time = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return in_constant_time(one, other)

    monkeypatch.setattr("app.keys.hmac.compare_digest", compare)
    keys = ring(ALICES, ROOTS)
    for secret in (ALICE, ROOT, "x"):
        compared.clear()
        keys.find(secret)
        # As many comparisons of as many bytes, whether it is the first, the last or none.
        assert compared == [(32, 32), (32, 32)]


def test_keys_come_from_the_setting_and_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who\n\n  {ROOTS.entry}  \n  # nobody\n")
    keys = read_keys(Settings(api_keys=(ALICES.entry,), api_keys_file=file))
    assert keys.find(ALICE) == ALICES
    assert keys.find(ROOT) == ROOTS
    assert keys.has_admin
    assert not keys.allows_anonymous


@pytest.mark.parametrize(
    ("settings", "anonymous"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0", "allow_anonymous": True}, True),
        ({"api_keys": (ROOTS.entry,)}, True),
        ({"api_keys": (ALICES.entry,)}, False),
        ({"api_keys": (ALICES.entry,), "allow_anonymous": True}, False),
        ({"api_keys": (ROOTS.entry,), "host": "0.0.0.0"}, False),
        ({"api_keys": (ALICES.entry,), "host": "0.0.0.0"}, False),
    ],
)
def test_who_is_served_without_a_key(settings: dict[str, Any], anonymous: bool) -> None:
    assert read_keys(Settings(**settings)).allows_anonymous is anonymous


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_listening_beyond_this_machine_needs_keys_or_a_waiver(host: str) -> None:
    with pytest.raises(StartupError, match=r"needs API keys.*GATEHOUSE_ALLOW_ANONYMOUS=true"):
        read_keys(Settings(host=host))
    assert main(["serve", "--host", host]) == 1


def test_a_clients_key_is_not_taken_for_protection() -> None:
    with pytest.raises(StartupError, match="GATEHOUSE_API_KEY is the key that a client sends"):
        read_keys(Settings(api_key=ALICE))
    assert read_keys(Settings(api_key=ALICE, api_keys=(ALICES.entry,))).find(ALICE)
    assert read_keys(Settings(api_key=ALICE, allow_anonymous=True)).allows_anonymous


@pytest.mark.parametrize(
    "entry",
    [
        ALICE,
        f"alice:user:{ALICE}",
        f"alice:{ALICES.digest.hex()}",
        f"alice:owner:{ALICES.digest.hex()}",
        f"alice:user:{ALICES.digest.hex().upper()}",
        f"alice:user:{ALICES.digest.hex()}0",
        f"Alice:user:{ALICES.digest.hex()}",
        f":user:{ALICES.digest.hex()}",
        f"(anonymous):user:{ALICES.digest.hex()}",
        f"alice smith:user:{ALICES.digest.hex()}",
    ],
)
def test_a_wrong_entry_is_refused_by_its_place_and_never_shown(entry: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ROOTS.entry}\n{entry}\n")
    for settings, place in (
        (Settings(api_keys=(ROOTS.entry, entry)), "GATEHOUSE_API_KEYS, entry 2: "),
        (Settings(api_keys_file=file), f"{file}, line 2: "),
    ):
        with pytest.raises(StartupError) as refused:
            read_keys(settings)
        assert str(refused.value).startswith(place)
        assert ALICE not in str(refused.value)
        assert ALICES.digest.hex().lower() not in str(refused.value).lower()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="GATEHOUSE_API_KEYS_FILE: cannot read"):
        read_keys(Settings(api_keys_file=tmp_path / "nowhere"))
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(StartupError, match="not UTF-8"):
        read_keys(Settings(api_keys_file=tmp_path / "bytes"))


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    twin = make_key("alice", "admin")[1]
    with pytest.raises(StartupError, match="two API keys have the name alice"):
        read_keys(Settings(api_keys=(ALICES.entry, twin.entry)))
    append_key(tmp_path / "keys", ALICES)
    with pytest.raises(StartupError, match="two API keys have the name alice"):
        append_key(tmp_path / "keys", twin)
    assert (tmp_path / "keys").read_text() == f"{ALICES.entry}\n"


@pytest.mark.parametrize(("options", "kind"), [([], "user"), (["--admin"], "admin")])
def test_the_command_makes_a_key_that_the_service_knows(
    options: list[str], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text(ROOTS.entry)  # without an end of its line
    assert main(["keys", "alice", "--file", str(file), *options]) == 0
    words = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert words["key"] not in file.read_text()
    assert file.read_text() == f"{ROOTS.entry}\n{words['entry']}\n"
    found = read_keys(Settings(api_keys_file=file)).find(words["key"])
    assert found is not None
    assert (found.name, found.kind) == ("alice", kind)


def test_the_command_refuses_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "Alice Smith"]) == 1
    assert "lower-case letters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("LOCALHOST", True), ("::1", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "")],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
