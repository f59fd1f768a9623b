"""The file of canaries: what is kept, replaced as a whole, and given back."""

import json
import stat
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.exporter.model import Canary
from services.exporter.probes.canaries import CanaryFile
from tests.iterations import LONG

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


def canary(version: int) -> Canary:
    return Canary(str(version), b"\x00aad", b"\xffciphertext %d" % version, bytes(32), 1_700_000_000.25)


def canary_file(folder: Path, target: str = "ledger-kek", key: str = KEY) -> CanaryFile:
    return CanaryFile(folder, target, key)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def versions(canaries: tuple[Canary, ...]) -> list[str]:
    return [one.version for one in canaries]


async def test_the_file_is_for_its_owner_alone_and_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(canary(1))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert names(tmp_path) == [file.path.name]


async def test_what_is_forgotten_is_gone_from_memory_and_disk(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(canary(1))
    await file.sync(canary(2))
    assert versions((await file.sync(remove={"1"}))[0]) == ["2"]
    assert versions((await file.sync())[0]) == ["2"]
    assert versions((await canary_file(tmp_path).sync())[0]) == ["2"]


async def test_what_a_person_takes_out_of_the_file_stays_out(tmp_path: Path) -> None:
    file = canary_file(tmp_path)
    await file.sync(canary(1))
    await file.sync(canary(2))
    content = json.loads(file.path.read_text())
    content[KEY] = [entry for entry in content[KEY] if entry["canary"]["version"] != "1"]
    file.path.write_text(json.dumps(content))
    assert await file.sync() == ((canary(2),), ())
    assert await file.sync(canary(3)) == ((canary(2), canary(3)), ())
    assert versions((await canary_file(tmp_path).sync())[0]) == ["2", "3"]


async def test_exporters_that_share_a_folder_add_to_each_other(tmp_path: Path) -> None:
    one, other = canary_file(tmp_path), canary_file(tmp_path)
    await one.sync(canary(1))
    await other.sync(canary(2))
    assert versions((await one.sync(canary(3)))[0]) == ["1", "2", "3"]


async def test_another_target_or_another_key_has_another_file_and_harms_none(tmp_path: Path) -> None:
    await canary_file(tmp_path, "a/b").sync(canary(1))
    assert await canary_file(tmp_path, "a:b").sync() == ((), ())
    assert await canary_file(tmp_path, "a/b", f"{KEY}-2").sync() == ((), ())
    assert versions((await canary_file(tmp_path, "a/b").sync())[0]) == ["1"]


@settings(max_examples=200 if LONG else 60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_whatever_the_file_contains_is_reported_or_accepted_whole(tmp_path: Path, data: st.DataObject) -> None:
    first = canary_file(tmp_path)
    first.path.with_name(f"{first.path.name}.bad").unlink(missing_ok=True)
    first.path.unlink(missing_ok=True)
    await first.sync(canary(1))
    good = first.path.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    spoiled = data.draw(
        st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=3).map(lambda some: good[:at] + some + good[at + len(some) :]),
            st.just(good[:at]),
            st.just(b"[" * 100_000),
        )
    )
    first.path.write_bytes(spoiled)
    canaries, problems = await canary_file(tmp_path).sync()
    assert (canaries, problems) == ((canary(1),), ()) or (canaries == () and len(problems) == 1)
    assert all("ciphertext" not in problem for problem in problems)
