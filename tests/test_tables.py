"""Tables say the figures, how sure they are, and what must be known of them."""

import re

import pytest

from unipt_jax import tables

NAMES = ("rank1", "rank5", "rank10", "map", "minp")


def direction(first, **more):
    """Figures first, first + 1, ...; bounds as wide as nothing."""
    values = {name: first + i for i, name in enumerate(NAMES)}
    bounds = {f"{n}_{b}": v for n, v in values.items() for b in BOUNDS}
    counts = {"queries": 20, "gallery": 10, "without_match": 0, "ties": 0}
    return values | bounds | counts | more


BOUNDS = ("optimistic", "pessimistic")
PROTOCOL = {"without_match": "left_out", "bootstrap": 1000, "level": 0.95, "rerank": ""}


def entry(system="mine", data="set/test", first=10.0, **more):
    more = dict(more)
    back = direction(first + 50, **more.pop("back", {}))
    defaults = {
        "system": system,
        "set": data,
        "model": f"{system} step 3",
        "selected_on": "",
        "selected_here": False,
        "protocol": PROTOCOL | more.pop("protocol", {}),
    }
    return defaults | direction(first) | {"image_to_text": back} | more


def results(*entries):
    return {f"{e['system']} on {e['set']}": e for e in entries}


def spread(value):
    return {"std": dict.fromkeys(NAMES, value)}


def ends(low, high):
    return {"intervals": {name: [low, high] for name in NAMES}}


# --- terminal ------------------------------------------------------------------------


def test_both_directions_stand_below_each_other_with_all_figures():
    lines = tables.terminal(results(entry())).splitlines()
    assert lines[0] == "text to image" and lines[4] == "image to text"
    heads = ["set", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP", "queries", "gallery"]
    assert lines[1].split() == lines[5].split() == heads
    figures = ["10.00", "11.00", "12.00", "13.00", "14.00", "20", "10"]
    assert lines[2].split() == ["set/test", *figures]
    assert lines[6].split()[1:6] == ["60.00", "61.00", "62.00", "63.00", "64.00"]
    assert len(lines) == 7  # nothing to be said of it


def test_several_systems_on_several_sets_are_a_matrix_of_each_figure():
    cells = {("a", "x/test"): 1.0, ("a", "y/test"): 2.0, ("b", "x/test"): 3.0}
    cells["b", "y/test"] = 4.0
    text = tables.terminal(results(*(entry(*key, v) for key, v in cells.items())))
    rank, precision = (
        text.split(f"{name}, text to image\n")[1].splitlines()[:3]
        for name in ("Rank-1", "mAP")
    )
    assert [line.split() for line in rank] == [
        ["x/test", "y/test"],
        ["a", "1.00", "2.00"],
        ["b", "3.00", "4.00"],
    ]
    assert precision[1].split() == ["a", "4.00", "5.00"]


def test_a_single_pair_has_no_matrix_and_no_column_for_the_system():
    text = tables.terminal(results(entry()))
    assert "system" not in text and "mine" not in text.replace("mINP", "")
    assert text.count("Rank-1 ") == 2


def test_intervals_stand_below_the_figures_and_are_explained():
    text = tables.terminal(results(entry(**ends(9.123, 11.456))))
    assert text.splitlines()[3].split("  ")[-1].strip() == "[9.12, 11.46]"
    assert "95% intervals over persons (1000 bootstrap draws)" in text


def test_several_runs_are_shown_with_their_spread():
    runs = [direction(9.5), direction(10.5)]
    runs = [
        run | {"model": f"seed{i}", "selected_on": "", "image_to_text": direction(5.0)}
        for i, run in enumerate(runs)
    ]
    text = tables.terminal(results(entry(runs=runs, **spread(0.707))))
    lines = text.splitlines()
    assert lines[3].split()[:2] == ["±", "0.71"]
    assert lines[4].split()[:2] == ["seed0", "9.50"]
    assert lines[5].split()[:2] == ["seed1", "10.50"]
    assert "± is the standard deviation over runs" in text


def test_columns_are_flush_right():
    lines = tables.aligned([["a", "bbb"], ["cccc", "d"]]).splitlines()
    assert lines == ["   a  bbb", "cccc    d"]


# --- what must be known --------------------------------------------------------------


def said(one):
    return "\n".join(tables.notes(one))


def test_bounds_are_told_where_equal_scores_matter_and_nowhere_else():
    assert tables.notes(entry()) == []
    tied = entry(rank1_optimistic=10.4, rank1_pessimistic=9.6, map_optimistic=13.001)
    assert "text to image: equal scores" in said(tied)
    assert "Rank-1 9.60 to 10.40" in said(tied) and "mAP" not in said(tied)
    back = entry(back={"minp_pessimistic": 1.0})
    assert "image to text: equal scores" in said(back)
    assert "mINP 1.00 to 64.00" in said(back)


@pytest.mark.parametrize(
    ("policy", "words"), [("left_out", "left out of"), ("zero", "each counts as 0")]
)
def test_queries_without_a_right_answer_are_told_with_what_they_count(policy, words):
    one = entry(back={"without_match": 3}, protocol={"without_match": policy})
    assert "image to text: 3 of 20 queries have no right answer" in said(one)
    assert words in said(one) and "text to image" not in said(one)


def before(first, back):
    """The figures without re-ranking in both directions."""
    return {"without_rerank": direction(first) | {"image_to_text": direction(back)}}


def test_re_ranking_is_named_with_the_figures_before_it_in_both_directions():
    name = "k-reciprocal, k1 20, k2 6, weight 0.3"
    one = entry(protocol={"rerank": name}, **before(3.0, 41.0))
    assert name in said(one)
    assert "text to image Rank-1 3.00, Rank-5 4.00" in said(one)
    assert "image to text Rank-1 41.00, Rank-5 42.00" in said(one)
    assert "the same figures" not in said(one)


def test_re_ranking_that_changes_nothing_says_so_of_that_direction():
    one = entry(protocol={"rerank": "k"}, **before(10.0, 60.0))
    assert said(one).count("the same figures") == 2
    other = entry(protocol={"rerank": "k"}, **before(10.0, 61.0))
    assert "text to image the same figures" in said(other)
    assert "image to text Rank-1 61.00" in said(other)


def test_a_checkpoint_chosen_on_the_reported_set_is_warned_of():
    chosen = entry(selected_on="test", selected_here=True)
    assert "chosen by its figures on set/test itself" in tables.warning(chosen)
    assert "checkpoint chosen on: test" in said(chosen)
    assert tables.warning(entry(selected_on="val")) == ""
    for write in (tables.terminal, tables.markdown, tables.latex):
        assert "warning: the checkpoint of mine was" in write(results(chosen))
        assert "warning" not in write(results(entry(selected_on="val")))


def test_notes_on_the_runs_stand_in_every_output():
    one = results(entry(notes=["s1 is unfinished"]))
    for write in (tables.terminal, tables.markdown, tables.latex):
        assert "s1 is unfinished" in write(one)


def test_a_note_that_holds_of_several_is_said_once():
    one, two = entry("a", selected_on="val"), entry("b", selected_on="val")
    assert tables.shared_notes(results(one, two)) == ["checkpoint chosen on: val"]
    other = entry("c", selected_on="last step")
    assert tables.shared_notes(results(one, two, other)) == [
        "a on set/test, b on set/test: checkpoint chosen on: val",
        "c on set/test: checkpoint chosen on: last step",
    ]


def test_intervals_beside_a_spread_are_explained_where_both_are_shown():
    both = results(entry(**spread(0.3), **ends(9, 11)))
    assert "brackets" not in tables.legend(both)
    assert "brackets" in tables.legend(both, both=True)
    assert "±" in tables.legend(both) and "±" in tables.legend(both, both=True)


# --- rows ----------------------------------------------------------------------------


def test_markdown_has_a_row_for_each_pair_in_each_direction():
    text = tables.markdown(results(entry("a|b", **spread(0.3)), entry("c")))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\) ?\| ?", row)[1:-1] for row in rows]
    assert len(cells) == 8 and all(len(row) == 7 for row in cells)
    assert cells[2][:3] == [r"a\|b", "set/test", "10.00 ± 0.30"]
    assert cells[3][:3] == ["c", "set/test", "10.00"]
    assert cells[7][2:4] == ["60.00", "61.00"]


HOSTILE = r"50%_a&b#c$d{e}~f^g\h"


def test_latex_shows_names_as_they_are():
    assert tables.escaped(HOSTILE) == (
        r"50\%\_a\&b\#c\$d\{e\}\textasciitilde{}f\textasciicircum{}g"
        r"\textbackslash{}h"
    )


def test_latex_is_a_tabular_of_booktabs_with_both_directions():
    text = tables.latex(results(entry("a", **spread(0.3)), entry("b", **ends(9, 11))))
    lines = text.splitlines()
    begin = lines.index(r"\begin{tabular}{llrrrrr}")
    assert all(line.startswith("% ") for line in lines[:begin])
    assert lines[begin + 1] == r"\toprule"
    assert lines[begin + 2] == r"System & Set & R1 & R5 & R10 & mAP & mINP \\"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [line for line in lines if line.count("&") == 6][1:]
    assert len(rows) == 4 and all(row.endswith(r" \\") for row in rows)
    assert rows[0].startswith(r"a & set/test & 10.00 $\pm$ 0.30 & 11.00 $\pm$ 0.30 &")
    assert rows[1].startswith("b & set/test & 10.00 [9.00, 11.00] &")
    assert r"\multicolumn{7}{l}{\emph{image to text}} \\" in lines


def test_names_at_the_start_of_a_row_mean_nothing_to_the_row_before():
    text = tables.latex(results(entry("[1]"), entry("*any")))
    assert "\n{[}1] &" in text and "\n{*}any &" in text
