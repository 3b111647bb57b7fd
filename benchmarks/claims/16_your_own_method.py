"""Write your own method: all of this page is measured while it is built."""

PAGE = "notebooks/16_your_own_method.ipynb"

CLAIMS = []

ASIDE = [
    (
        "mean over budgets mosaic is 4 points above FoPru in what is known, and 28 "
        "points in what is said"
    ),
    "by about 30 points at a tenth of the tokens",
    "At 25, 10 and 5 % of the tokens the differences are about 0, 1 and 4 points",
    "37 % with FoPru's tokens at a tenth and below 6 % with mosaic's",
    "There mosaic knew 7.5 points more than FoPru at a tenth",
]
