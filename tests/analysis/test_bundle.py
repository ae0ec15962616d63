"""The library of the page is the one that the pinned vl-convert packs."""

from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.browser
def test_the_library_is_what_vl_convert_packs():
    vl_convert = pytest.importorskip("vl_convert", reason="vl-convert is not installed: pip install -e '.[browser]'")
    head, _, bundle = (ROOT / "analysis" / "web" / "vega.min.js").read_text(encoding="utf-8").partition("\n")
    if version("vl-convert-python") not in head:
        pytest.skip(f"{head} is of another vl-convert; here is {version('vl-convert-python')}")
    assert bundle == vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
