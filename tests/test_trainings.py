"""Several trainings of one model: their spread, and what may be ranked."""

import numpy as np
import pandas as pd
import pytest

from fopru.evaluation import rows, statistics, trainings
from fopru.evaluation.metrics import METRICS

COLUMNS = ["id", "image", "task", "method", "retention", "seed", "exact", "choice"]
FULL, ONE, OTHER = ("full", 1.0), ("one", 0.25), ("other", 0.25)


def asked(right, training=None):
    """Answers of settings -> the questions of 40, one a picture, that each gets right."""
    answers = [
        (f"q{i}", f"p{i}", "t", *setting, 0, i in there, i in there)
        for setting, there in right.items()
        for i in range(40)
    ]
    table = pd.DataFrame(answers, columns=COLUMNS)
    return table if training is None else table.assign(training=training)


def test_mean_and_spread_are_over_trainings():
    shares = (20, 28, 24)
    table = pd.concat(asked({ONE: range(n), OTHER: range(40)}, n) for n in shares)
    found = trainings.over_trainings(table).set_index("method")
    means = np.array(shares) / 40
    assert found.loc["one", ["trainings", "mean"]].tolist() == [3, pytest.approx(0.6)]
    assert found.loc["one", "spread"] == pytest.approx(means.std(ddof=1))
    assert found.loc["one", ["low", "high"]].tolist() == [0.5, 0.7]
    assert found.loc["other", ["spread", "low", "high"]].tolist() == [0, 1, 1]
    table["formed"] = table.method.eq("one")
    known = statistics.readings(table, table=trainings.over_trainings).set_index("reading")
    assert known.loc["known", "high"].tolist() == [0.7, 1]
    assert known.loc["malformed", "low"].tolist() == [0, 1]


def test_one_training_has_no_spread():
    (row,) = trainings.over_trainings(asked({ONE: range(10)}, "seed 0")).itertuples()
    assert row.mean == 0.25 and np.isnan([row.spread, row.low, row.high]).all()


def test_without_the_column_no_number_is_given():
    with pytest.raises(ValueError, match='no column "training"'):
        trainings.over_trainings(asked({ONE: range(10)}))
    with pytest.raises(ValueError, match='no column "training"'):
        trainings.compared(asked({ONE: range(10), OTHER: range(5)}), ONE, OTHER)


def test_rows_without_a_training_are_not_left_out_in_silence():
    rows = asked({ONE: range(10), OTHER: range(5)}, "seed 0")
    rows.loc[rows.index[:3], "training"] = None
    with pytest.raises(ValueError, match=f"3 of {len(rows)} rows name no training"):
        trainings.over_trainings(rows)
    with pytest.raises(ValueError, match="name no training"):
        trainings.compared(rows, ONE, OTHER)


def test_a_ranking_needs_every_training():
    ahead = [asked({ONE: range(30), OTHER: range(10)}, seed) for seed in range(3)]
    behind = asked({ONE: range(10), OTHER: range(30)}, 3)
    level = asked({ONE: range(20), OTHER: range(1, 21)}, 3)
    table = trainings.compared(pd.concat(ahead), ONE, OTHER)
    assert table["difference"].tolist() == [0.5] * 3 and trainings.ranks(table)
    mean, low, high = trainings.envelope(table)
    assert (mean, low, high) == (0.5, table["low"].min(), table["high"].max()) and 0 < low < 0.5
    lone = table.assign(low=[*table["low"][:2], np.nan])  # one picture, which has no interval
    assert np.isnan(trainings.envelope(lone)[1]) and not trainings.ranks(lone)
    assert not trainings.ranks(trainings.compared(pd.concat(ahead), OTHER, ONE))
    assert not trainings.ranks(trainings.compared(pd.concat(ahead[:2]), ONE, OTHER))
    for last in (behind, level):
        joined = trainings.compared(pd.concat([*ahead, last]), ONE, OTHER)
        assert not trainings.ranks(joined) and trainings.envelope(joined)[1] < 0


def test_each_training_is_compared_with_its_own_full_model():
    """Two trainings that know two halves: neither loses anything, and neither is filtered by the
    other."""
    first = asked({FULL: range(20), ("smaller", 0.25): [], ("fopru", 0.25): range(20)}, 0)
    second = asked({FULL: range(20, 40), ("smaller", 0.25): [], ("fopru", 0.25): range(20, 40)}, 1)
    both = pd.concat([first, second]).assign(prediction="", loglik=0.0)
    one_unnamed = both.assign(training=both["training"].replace(1, np.nan))
    for table in (both, one_unnamed):
        flips = statistics.flips(table).set_index("method").loc["fopru"]
        assert flips[["lost", "gained"]].tolist() == [0, 0]
        assert rows.needing(table).method.eq("fopru").sum() == 40
    found = rows.needing(both)
    assert found[found.method == "fopru"].groupby("training").id.agg(set).tolist() == [
        {f"q{i}" for i in range(20)},
        {f"q{i}" for i in range(20, 40)},
    ]


def test_metrics_are_counted_for_each_training_and_then_averaged():
    """F1 of answers that are joined is not the mean of F1."""
    right = asked({FULL: range(40)}, 0).assign(answer="yes", prediction="yes")
    wrong = asked({FULL: ()}, 1).assign(answer=["yes", "no"] * 20, prediction="yes")
    table = pd.concat([right, wrong]).assign(metric="f1")
    (found,) = statistics.scores(table)["score"]
    assert found == pytest.approx((1 + 2 / 3) / 2)
    assert METRICS["f1"].over(table) == pytest.approx(6 / 7) != found


def test_questions_that_a_smaller_picture_answers_are_left_out():
    right = {FULL: range(10, 40), ("smaller", 0.25): range(20), ("smaller", 0.1): range(12)}
    right |= {("fopru", 0.25): range(30), ("fopru", 0.1): range(30)}
    found = rows.needing(asked(right))
    ids = found.groupby(["method", "retention"])["id"].agg(set)
    for retention, first in ((0.25, 20), (0.1, 12)):
        wanted = {f"q{i}" for i in range(first, 40)}
        assert ids["fopru", retention] == ids["full", retention] == wanted
    table = statistics.means(found).set_index(["method", "retention"])["mean"]
    assert table["smaller", 0.25] == 0 and table["full", 0.1] == 1
    assert table["fopru", 0.25] == 0.5
    with pytest.raises(ValueError, match="no method 'smaller'"):
        rows.needing(asked({FULL: range(40)}))
