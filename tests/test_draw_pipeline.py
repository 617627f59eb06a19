"""The pipeline's picture in the notebook."""

import xml.etree.ElementTree as ET

from docs import draw_pipeline


def test_the_picture_is_what_its_script_draws():
    picture = draw_pipeline.PICTURE.read_text(encoding="utf-8")
    assert picture == draw_pipeline.draw(), "Draw it: python -m docs.draw_pipeline"


def test_the_picture_has_both_phases_and_the_cache_and_knows_dark_pages():
    drawn = draw_pipeline.draw()
    texts = " ".join(ET.fromstring(drawn).itertext())
    assert all(word in texts for word in ("Prefill", "Decode", "KV cache"))
    assert "@media (prefers-color-scheme: dark)" in drawn
