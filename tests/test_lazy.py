import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnemonist.lazy import attach

INIT = """
from mnemonist.lazy import attach
__getattr__, __dir__, __all__ = attach(__name__, {"recall": ".recall", "LIMIT": ".limits"})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "lazy_example"
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "recall.py").write_text("def recall(): return 'recalled'")
    (folder / "limits.py").write_text("LIMIT = 7")
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazy_example"
    for name in [name for name in sys.modules if name.startswith("lazy_example")]:
        del sys.modules[name]


def test_a_module_is_imported_when_its_name_is_used(package: str) -> None:
    example = __import__(package)
    assert "lazy_example.limits" not in sys.modules
    assert example.LIMIT == 7
    assert "lazy_example.limits" in sys.modules and "lazy_example.recall" not in sys.modules


def test_a_name_spelt_like_its_module_stays_the_name(package: str) -> None:
    example = __import__(package)
    assert example.recall() == "recalled"
    assert example.recall() == "recalled"  # and not the module, which importing it has bound there


def test_names_are_listed_before_they_are_used(package: str) -> None:
    example = __import__(package)
    assert example.__all__ == ["LIMIT", "recall"]
    assert {"LIMIT", "recall", "__name__"} <= set(dir(example))


def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="'lazy_example' has no attribute 'recal'"):
        _ = __import__(package).recal


@pytest.mark.parametrize("module", ["rule", "..rule", ".", "mnemonist.rule"])
def test_a_package_offers_only_its_own_names(module: str) -> None:
    with pytest.raises(ValueError, match=r"pkg\.NAME"):
        attach("pkg", {"NAME": module})
