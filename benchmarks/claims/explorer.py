"""The explorer's page: six pictures, whose answers its own cells assert."""

PAGE = "notebooks/explorer.ipynb"
CLAIMS: list = []
ASIDE = []
