"""The page holds what it was given, loads nothing, and lets nothing out of its place."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from mnemonist.report import Curve, Reading, SurpriseMap, write_reading
from mnemonist.report.reading import QUANTITIES, render_reading

HOSTILE = "</script><img src=x onerror=alert(1)><!-- <style> {{data}} ' \" & \u2028"


def surprise_map(text=b"def f(x):\n\treturn x\n", layers=2, heads=3, **keys):
    rng = np.random.default_rng(0)
    arrays = {name: rng.gamma(1.0, size=(layers, heads, len(text))) for name in QUANTITIES}
    bits = np.concatenate([[np.nan], rng.gamma(2.0, size=len(text) - 1)]) if text else np.zeros(0)
    names = tuple(f"layer {n}" for n in range(layers))
    return SurpriseMap(
        **{"title": "f.py", "text": text, "layers": names, "heads": heads, **arrays, "bits": bits, **keys}
    )


def reading(**keys):
    positions = np.array([16.0, 128.0, 1024.0])
    curve = Curve("memory learning", positions, np.array([4.0, 3.0, 2.0]))
    values = {
        "title": "A reading",
        "figures": (("bits per byte", "1.74"),),
        "curves": (curve, replace(curve, label="memory frozen", bits=curve.bits + 0.3)),
        "maps": (surprise_map(),),
        "facts": (("model", "tiny"), ("seed", "0")),
        "command": "mnemonist read --seed 0",
    }
    return Reading(**{**values, **keys})


def unpack(packed, length):
    codes = np.frombuffer(base64.b64decode(packed["data"]), dtype=f"<u{packed['width']}").reshape(-1, length)
    low, step, log = (np.array(packed[key], dtype=np.float64)[:, None] for key in ("low", "step", "log"))
    values = low + (codes.astype(np.float64) - 1) * step
    values = np.where(log == 1, np.exp(np.where(log == 1, values, 0.0)), values)
    return np.where(codes == 0, np.nan, values)


def test_the_page_shows_what_it_was_given(Page):
    page = Page(render_reading(reading()))
    assert "".join(page.texts["h1"]) == "".join(page.texts["title"]) == "A reading"
    assert page.texts["dt"] == ["bits per byte"]
    assert page.texts["dd"] == ["1.74"]
    assert page.texts["th"] == ["model", "seed"]
    assert page.texts["td"] == ["tiny", "0"]
    assert page.texts["code"] == ["mnemonist read --seed 0"]
    assert {"memory learning", "memory frozen"} <= set(page.texts["text"])
    assert not any("hidden" in attributes for tag, attributes in page.tags if tag in ("figure", "section", "table"))


def test_arrays_come_back_within_the_error_of_their_codes(Page):
    each = surprise_map(b"x" * 400)
    packed = Page(render_reading(reading(maps=(each,)))).data["maps"][0]
    assert base64.b64decode(packed["text"]) == each.text
    assert packed["layers"] == ["layer 0", "layer 1"]
    for name in QUANTITIES:
        got = unpack(packed["quantities"][name], 400).reshape(2, 3, 400)
        np.testing.assert_allclose(got, getattr(each, name), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(unpack(packed["bits"], 400)[0], each.bits, rtol=2e-4, atol=1e-5)


def test_gaps_stay_gaps_and_missing_gates_stay_out(Page):
    each = surprise_map(momentum=None, decay=None)
    surprise = each.surprise.copy()
    surprise[1, 2, 3], surprise[0, 0, 0] = np.nan, np.inf
    packed = Page(render_reading(reading(maps=(replace(each, surprise=surprise),)))).data["maps"][0]
    assert list(packed["quantities"]) == ["surprise", "loss", "step_size"]
    got = unpack(packed["quantities"]["surprise"], len(each.text)).reshape(surprise.shape)
    np.testing.assert_array_equal(np.isnan(got), ~np.isfinite(surprise))


def test_hostile_text_stays_text_everywhere(Page):
    positions = np.array([1.0, 2.0])
    hostile = Reading(
        title=HOSTILE,
        figures=((HOSTILE, HOSTILE),),
        curves=(Curve(HOSTILE, positions, positions),),
        maps=(surprise_map(HOSTILE.encode(), title=HOSTILE, layers=1),),
        facts=((HOSTILE, HOSTILE),),
        command=HOSTILE,
    )
    plain, page = Page(render_reading(reading())), Page(render_reading(hostile))
    assert page.attributes("img") == []
    # The same elements as a harmless page with as many entries: nothing was read as markup.
    for tag in ("script", "style", "section", "p", "div", "button", "pre"):
        assert len(page.attributes(tag)) == len(plain.attributes(tag)), tag
    for tag in ("title", "h1", "dt", "dd", "th", "td", "code"):
        assert "".join(page.texts[tag]) == HOSTILE, tag
    each = page.data["maps"][0]
    assert each["title"] == HOSTILE
    assert base64.b64decode(each["text"]) == HOSTILE.encode()
    assert page.data["plot"]["curves"][0]["label"] == HOSTILE


def test_the_page_is_closed_and_whole(check_closed, check_elements):
    check_closed(render_reading(reading()))
    check_elements(render_reading(reading()))


def test_empty_parts_are_hidden(Page):
    page = Page(render_reading(reading(figures=(), curves=(), maps=(), facts=(), command="")))
    hidden = {attributes.get("id", tag) for tag, attributes in page.tags if "hidden" in attributes}
    assert {"plot", "map", "table"} <= hidden
    assert page.data["maps"] == [] and page.data["plot"] is None
    assert page.attributes("dl") == [{"id": "readout", "class": "readout"}]


def test_bands_are_spoken_of_only_where_there_are_some():
    plain = reading()
    banded = replace(plain.curves[0], low=plain.curves[0].bits - 0.1, high=plain.curves[0].bits + 0.1)
    for curves, hidden in ((plain.curves, True), ((banded,), False)):
        html = render_reading(reading(curves=curves))
        assert ("<span hidden>Bands are" in html) is hidden
        assert ('class="band' in html) is not hidden


def test_a_long_text_with_many_heads_keeps_the_page_small(Page):
    each = surprise_map(b"a" * 32_768, layers=8, heads=8)
    html = render_reading(reading(maps=(each,)))
    assert len(html) < 6_000_000
    packed = Page(html).data["maps"][0]["quantities"]
    assert packed["surprise"]["heads"] == 8
    means = unpack(packed["loss"], 32_768)
    np.testing.assert_allclose(means, each.loss.mean(1), rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="too long for one page"):
        render_reading(reading(maps=(each,) * 5))


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "reading.html"
    write_reading(path, reading())
    before = path.read_bytes()
    assert before.decode() == render_reading(reading())

    def refuse(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("mnemonist.files.os.replace", refuse)
    with pytest.raises(OSError, match="the disk is full"):
        write_reading(path, reading(title="another"))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["reading.html"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text": b""}, "is empty"),
        ({"layers": 0}, "at least one layer"),
        ({"heads": 0}, "at least one layer and one head"),
        ({"loss": np.zeros((2, 3, 5))}, r"loss of 'f.py' has shape \[2, 3, 5\], .* ask for \[2, 3, 20\]"),
        ({"decay": np.zeros((2, 20))}, "decay of 'f.py' has shape"),
        ({"bits": np.zeros(19)}, r"bits of 'f.py' has shape \[19\], .* ask for \[20\]"),
    ],
)
def test_maps_that_do_not_fit_their_text_say_so(keys, message):
    with pytest.raises(ValueError, match=message):
        surprise_map(**keys)
