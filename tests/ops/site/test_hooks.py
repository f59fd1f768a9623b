"""The documents of GitHub as mkdocs reads them. Whether each link of the site leads somewhere, `make docs` checks."""

import pytest

from ops.site.hooks import indent_lists, resolve_link

REPOSITORY = "https://github.com/acme/keypulse"


@pytest.mark.parametrize(
    ("source", "target", "leads_to"),
    [
        ("README.md", "docs/quickstart.md#start", "quickstart.md#start"),
        ("README.md", "docs/images/board-failing.png", "images/board-failing.png"),
        ("README.md", "compose.yaml", f"{REPOSITORY}/blob/main/compose.yaml"),
        ("docs/quickstart.md", "../README.md#try-it", "index.md#try-it"),
        ("docs/quickstart.md", "README.md", "contents.md"),
        ("docs/runbooks/Watchdog.md", "../console.md", "../console.md"),
        ("docs/runbooks/Watchdog.md", "../../CHANGELOG.md", "../changelog.md"),
        ("docs/README.md", "runbooks", f"{REPOSITORY}/tree/main/docs/runbooks"),
        ("ops/helm/keypulse/README.md", "values.yaml", f"{REPOSITORY}/blob/main/ops/helm/keypulse/values.yaml"),
        ("ops/helm/keypulse/README.md", "../../../docs/SLACK.md", "SLACK.md"),
        ("docs/quickstart.md", "#a-heading", "#a-heading"),
        ("docs/quickstart.md", "https://prometheus.io/docs", "https://prometheus.io/docs"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site_or_to_the_repository(source: str, target: str, leads_to: str) -> None:
    assert resolve_link(target, source) == leads_to


@pytest.mark.parametrize(
    ("github", "mkdocs"),
    [
        ("- a\n  more\n- b\n\ntext", "- a\n    more\n- b\n\ntext"),
        ("1. a\n   - b\n     more\n2. c", "1. a\n    - b\n        more\n2. c"),
        ("10. a\n\n    | b |", "10. a\n\n    | b |"),
        ("1. a\n\n   ```sh\n   - no item\n   ```", "1. a\n\n    ```sh\n    - no item\n    ```"),
        ("1. a\n\n   more\n2. b", "1. a\n\n    more\n\n2. b"),
    ],
)
def test_what_belongs_to_an_item_of_a_list_is_four_spaces_inside_of_it(github: str, mkdocs: str) -> None:
    assert indent_lists(github) == mkdocs
