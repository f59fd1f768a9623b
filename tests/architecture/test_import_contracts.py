"""Every module has its place in an import contract, so that a new one without a place fails `make check`."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = {
    file.parent.relative_to(ROOT).as_posix().replace("/", ".")
    for top in ("services", "shared", "ops")
    for file in (ROOT / top).rglob("__init__.py")
}


def contracts() -> list[dict[str, Any]]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    assert isinstance(found, list)
    return found


def modules_of(package: str) -> set[str]:
    folder = ROOT / package.replace(".", "/")
    return {each.stem for each in folder.glob("*.py") if each.stem != "__init__"} | {
        each.name for each in folder.iterdir() if (each / "__init__.py").is_file()
    }


def test_every_package_of_several_modules_has_an_exhaustive_contract() -> None:
    exhaustive = {name for each in contracts() if each.get("exhaustive") for name in each["containers"]}
    several = {name for name in PACKAGES if len(modules_of(name)) > 1}
    assert several - exhaustive == set()


def test_the_delivery_may_import_nothing_of_the_channels_but_their_port() -> None:
    (contract,) = [each for each in contracts() if each["name"] == "delivery knows of channels the port only"]
    assert contract["forbidden_modules"] == ["services.relay.channels"]
    assert contract["ignore_imports"] == ["services.relay.delivery.** -> services.relay.channels.port"]
