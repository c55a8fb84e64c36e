from __future__ import annotations

import pandas as pd

from abplib.core.tables import to_html, two_digits


def test_errors_keep_two_digits_and_the_rest_is_there_on_hover() -> None:
    assert two_digits("0.123456", "0.00456") == ("0.1235", "0.0046")
    assert two_digits("3.2", "0.0964") == ("3.200", "0.096")
    assert two_digits("250.4", "31") == ("250", "31")
    assert two_digits("1.0", "0.0") == ("1.0", "0.0")
    page = to_html(pd.DataFrame({"method": ["a & b"], "L2 ↓": ["0.123456 ± 0.00456"]}), "t")
    assert '<th scope="row">a &amp; b</th>' in page
    assert 'title="0.123456 ± 0.00456">0.1235 <small>± 0.0046</small></td>' in page
    assert 'data-label="L2 ↓"' in page
    printed = to_html(pd.DataFrame({"m": ["a"], "v": ["3.2550 ± 0.0964"]}), "t", rounded=False)
    assert ">3.2550 <small>± 0.0964</small><" in printed and "title" not in printed


def test_numbers_are_told_from_words_and_what_is_missing_is_a_dash() -> None:
    frame = pd.DataFrame(
        {"x": ["r"], "n": [1 / 3], "i": ["5 % [1, 9]"], "w": ["is 5"], "z": [None]}
    )
    page = to_html(frame, "t", ".2f", {"n": lambda value: f"{value:.1f}"})
    assert page.count('<td class="abp-number"') == 3
    assert ">0.3<" in page and ">–<" in page and ">5 % <small>[1, 9]</small><" in page
