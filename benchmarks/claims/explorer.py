"""The explorer's page: six pictures, whose answers its own cells assert."""

PAGE = "notebooks/explorer.ipynb"
CLAIMS: list = []
ASIDE = [  # budgets
    "at 20 %, rank says",
    "At 15 % what is said",
    "At 12.5 % it does not",
    "from 20 % to 10 %",
]
